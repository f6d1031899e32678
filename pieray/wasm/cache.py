"""The folder in which processes of one user share compiled code: work under way in it, and what is dropped from it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pieray.errors import EngineError

MAX_BYTES = 1 << 30
"""Of files; beyond that those go first that were not asked for for longest."""
KEEP_UNUSED_S = 14 * 86_400.0
KEEP_RECENT_S = 600.0
"""Whoever was given a file's name has opened it by then."""

_SUFFIXES = (".cwasm", ".wasm", ".lock")
_SCRATCH = ("build-", "compile-")
_OWNER = "owner.lock"
_NEW_S = 60.0  # whoever makes a scratch folder has locked it by then
_UNOWNED_S = 3600.0  # one without a lock is older than any work that would be in it


def cache_folder() -> Path:
    """$PIERAY_CACHE or ~/.cache/pieray, made if need be; EngineError if it is someone else's."""
    folder = Path(os.environ.get("PIERAY_CACHE") or Path.home() / ".cache" / "pieray")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise EngineError(
            f"the cache {folder} holds native code: it must belong to this user and be writable by no other"
        )
    return folder


@contextlib.contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """An empty folder in `folder` for as long as the block runs; `tidy` removes that of a process that was killed.

    `prefix` is "build-" or "compile-".
    """
    assert prefix in _SCRATCH
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as name, Path(name, _OWNER).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        work = Path(name, "work")
        work.mkdir()
        yield work


def tidy(folder: Path, now: float | None = None) -> None:
    """Drop scratch folders whose process is dead, files that nobody has asked for in KEEP_UNUSED_S, and beyond
    MAX_BYTES those that were asked for least recently, but for the last KEEP_RECENT_S; who has one mapped keeps it."""
    now = time.time() if now is None else now
    found: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process tidies as well
            status = path.stat()
            if path.name.startswith(_SCRATCH):
                if _is_abandoned(path, now - status.st_mtime):
                    shutil.rmtree(path, ignore_errors=True)
            elif path.suffix in _SUFFIXES:
                found.append((status.st_mtime, status.st_size, path))
    num_bytes = 0
    for used_at, size, path in sorted(found, reverse=True):
        num_bytes += size
        if now - used_at > KEEP_UNUSED_S or (size and num_bytes > MAX_BYTES and now - used_at > KEEP_RECENT_S):
            path.unlink(missing_ok=True)
            num_bytes -= size


def _is_abandoned(scratch_folder: Path, age_s: float) -> bool:
    """Whether the process that made it is dead: its lock on the folder has ended with it."""
    if age_s < _NEW_S:
        return False
    try:
        with (scratch_folder / _OWNER).open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return age_s > _UNOWNED_S
    return True
