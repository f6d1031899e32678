"""Components to machine code: compiled once, in a subprocess with limits, and kept in a cache of files.

A `.cwasm` is native code: it is trusted because this module wrote it, into a folder that belongs to this
user, and never because someone sent it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pieray.errors import DeadlineExceeded, EngineError, InvalidRequest, QuotaExceeded
from pieray.wasm import engine, native
from pieray.wasm.cache import cache_folder, scratch, tidy

COMPONENT_MAGIC = b"\0asm\x0d\x00\x01\x00"
MODULE_MAGIC = b"\0asm\x01\x00\x00\x00"
ELF_MAGIC = b"\x7fELF"

LOCK_POLL_S = 0.02
LOCK_SLACK_S = 30.0
"""For a process that compiles to start, and to be ended at its wall limit."""


@dataclass(frozen=True, slots=True)
class CompileLimits:
    """What one compilation may use.  The Python runtime (22 MB) takes 12 s of CPU and 0.5 GB."""

    memory_bytes: int = 4 << 30
    cpu_time_s: int = 120
    wall_time_s: float = 240.0
    nice: int = 0
    """Added to the child's nice value: what guests bring is compiled behind all that serves."""


def check_magic(wasm: bytes, name: str) -> None:
    """InvalidRequest unless `wasm` begins as a component in binary form."""
    if wasm.startswith(COMPONENT_MAGIC):
        return
    if wasm.startswith(ELF_MAGIC):
        raise InvalidRequest(f"{name} is precompiled native code; give the WebAssembly component itself")
    if wasm.startswith(MODULE_MAGIC):
        raise InvalidRequest(f"{name} is a core module; give a component (`wasm-tools component new`)")
    raise InvalidRequest(f"{name} is no WebAssembly component: it begins with {wasm[:8]!r}")


def compiled(wasm: bytes, name: str, limits: CompileLimits) -> Path:
    """The file with the machine code of the component `wasm`, from the cache or compiled now.

    Raises InvalidRequest if it is no valid component, QuotaExceeded if compiling it passes `limits`.
    One process compiles a component; others that ask for it wait, up to its wall limit.
    """
    check_magic(wasm, name)
    path = cache_folder() / f"{_key(wasm)}.cwasm"
    if path.exists():
        os.utime(path)  # still in use: see `tidy`
        return path
    with _locked(path.with_suffix(".lock"), name, limits.wall_time_s + LOCK_SLACK_S):
        if not path.exists():
            _compile(wasm, name, path, limits)
            tidy(path.parent)
    return path


def is_compiled(wasm: bytes) -> bool:
    """Whether `compiled` would find the component in the cache."""
    return (cache_folder() / f"{_key(wasm)}.cwasm").exists()


def _key(wasm: bytes) -> str:
    """All that the machine code depends on."""
    rest = f"{native.wasmtime_version()} {platform.machine()} {sys.platform} {engine.SETTINGS}"
    return f"{hashlib.sha256(wasm).hexdigest()}-{hashlib.sha256(rest.encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def _locked(path: Path, name: str, timeout_s: float) -> Iterator[None]:
    """Hold the file lock `path`; it ends with the process, so a crashed compiler leaves none behind."""
    deadline = time.monotonic() + timeout_s
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(f"another process has been compiling {name} for {timeout_s:g} s") from None
                time.sleep(LOCK_POLL_S)
        yield


def _compile(wasm: bytes, name: str, path: Path, limits: CompileLimits) -> None:
    with scratch(path.parent, "compile-") as folder:
        source, target = folder / "component.wasm", folder / "component.cwasm"
        source.write_bytes(wasm)
        numbers = (limits.memory_bytes, limits.cpu_time_s, limits.nice)
        _run_child([str(source), str(target), *map(str, numbers)], name, limits)
        os.replace(target, path)


def _run_child(arguments: list[str], name: str, limits: CompileLimits) -> None:
    command = [sys.executable, "-m", "pieray.wasm.compile_child", *arguments]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(min(4, os.cpu_count() or 1)), "MALLOC_ARENA_MAX": "2"}
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and files
            command,
            env=environment,
            capture_output=True,
            timeout=limits.wall_time_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise QuotaExceeded(f"compiling {name} took more than {limits.wall_time_s:g} s") from None
    if done.returncode == 0:
        return
    text = done.stderr.decode(errors="replace").strip()
    if done.returncode == 3:
        raise InvalidRequest(f"{name} is no valid component: {text}")
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise QuotaExceeded(f"compiling {name} took more than {limits.cpu_time_s} s of CPU time")
    if done.returncode == -signal.SIGABRT or "MemoryError" in text:  # what Rust and Python do without memory
        raise QuotaExceeded(f"compiling {name} does not do with {limits.memory_bytes} bytes of memory")
    raise EngineError(f"compiling {name} failed with status {done.returncode}: {text[-500:]}")
