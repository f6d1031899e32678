"""`python -m pieray.wasm.compile_child SOURCE TARGET MEMORY_BYTES CPU_S NICE`: compile one component, within limits.

Exits 0 with TARGET written, 3 with the reason on stderr if SOURCE is no valid component; a limit ends it
by a signal, or by whatever an allocation that fails does.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

import wasmtime
from wasmtime.component import Component

from pieray.wasm.engine import new_engine

PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Nobody waits for what an orphan compiles.  The parent's thread that started this one waits for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(source: str, target: str, memory_bytes: str, cpu_time_s: str, nice: str) -> int:
    memory, cpu = int(memory_bytes), int(cpu_time_s)
    _end_with_parent()
    os.nice(int(nice))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        code = Component(new_engine(), Path(source).read_bytes()).serialize()
    except wasmtime.WasmtimeError as error:
        sys.stderr.write(str(error)[:2000])
        return 3
    Path(target).write_bytes(code)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
