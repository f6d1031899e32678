"""The C kernels: compiled once with the system's `cc`, kept in a cache, loaded with ctypes.

`PIERAY_CACHE` names the cache folder (default ~/.cache/pieray); `PIERAY_NO_CC=1` does without C altogether.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

SOURCE = "cpu.c"  # includes the others
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")
#: tried in order: not every compiler has OpenMP
EXTRA_FLAGS = (("-fopenmp",), ())
COMPILE_SECONDS = 120


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The loaded C kernels, None if there is no compiler (then torch computes instead).  One log line says which."""
    if os.environ.get("PIERAY_NO_CC") == "1":
        log.info("kernels on the CPU: torch, for PIERAY_NO_CC=1")
        return None
    try:
        path = build()
        loaded = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        log.warning("kernels on the CPU: torch, several times slower, for there is no C kernel: %s", error)
        return None
    log.info("kernels on the CPU: C, %s", path)
    return loaded


def build() -> Path:
    """The shared object for these sources, this compiler and this CPU, compiled unless it is in the cache.

    Safe under concurrent builds: each compiles to a name of its own and renames it into place.
    """
    folder = Path(__file__).parent
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise RuntimeError("no C compiler on PATH")
    target = cache_folder() / f"kernels-{_key(folder, compiler)}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    for extra in EXTRA_FLAGS:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".tmp")
        os.close(handle)
        command = [compiler, *FLAGS, *extra, str(folder / SOURCE), "-o", name, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)  # noqa: S603
        if done.returncode == 0:
            Path(name).replace(target)
            return target
        Path(name).unlink(missing_ok=True)
    raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[-400:]}")


def cache_folder() -> Path:
    return Path(os.environ.get("PIERAY_CACHE") or Path.home() / ".cache" / "pieray")


def _key(folder: Path, compiler: str) -> str:
    """A name for sources, flags, compiler and CPU: `-march=native` code must not travel to another machine."""
    digest = hashlib.sha256()
    for source in sorted(folder.glob("*.c")):
        digest.update(source.read_bytes())
    digest.update("\0".join((*FLAGS, compiler, platform.machine(), _cpu_flags())).encode())
    return digest.hexdigest()[:20]


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
