"""The scratch folder of an inferlet: files in memory, bounded, under checked paths."""

from __future__ import annotations

import threading

from pieray.errors import InvalidRequest, NotFound, QuotaExceeded

MAX_FILES = 4096
MAX_PATH = 255
"""Characters of a path."""
FILE_BYTES = 128
"""What a file takes of `Limits.scratch_bytes` beside its content, however short that is."""


def check_path(path: str) -> str:
    """The path, if it is one: relative, of parts divided by "/", none of them empty, "." or "..".

    Raises InvalidRequest.
    """
    if not 0 < len(path) <= MAX_PATH:
        raise InvalidRequest(f"a path has from 1 to {MAX_PATH} characters; given {len(path)}")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 or c == "\\" for c in path):
        raise InvalidRequest(f"a path has no control characters and no backslashes; given {path!r}")
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise InvalidRequest(f"a path is relative, its parts are not empty, no '.' and no '..'; given {path!r}")
    return path


class ScratchFolder:
    """Thread-safe.  Names are flat: "a" and "a/b" may both be files.  A path that is none raises InvalidRequest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: dict[str, bytearray] = {}
        self._num_bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """What is used of `Limits.scratch_bytes`."""
        return self._num_bytes

    def write(self, path: str, data: bytes, *, append: bool = False) -> None:
        """Write in place of what is there, or behind it.  Raises QuotaExceeded; nothing has changed then."""
        check_path(path)
        with self._lock:
            self._write(path, data, append)

    def write_new(self, path: str, data: bytes) -> str:
        """Write under a path that is free: `path`, else with a number before its suffix; returns it."""
        check_path(path)
        folder, slash, name = path.rpartition("/")
        stem, dot, suffix = name.rpartition(".")
        if not stem:
            stem, dot, suffix = name, "", ""
        with self._lock:
            found, number = path, 2
            while found in self._files:
                found = check_path(f"{folder}{slash}{stem}-{number}{dot}{suffix}")
                number += 1
            self._write(found, data, append=False)
            return found

    def read(self, path: str, offset: int = 0, count: int | None = None) -> bytes:
        """Up to `count` bytes from `offset`, all for None; none behind the end.  Raises NotFound."""
        with self._lock:
            file = self._file(path)
            return bytes(file[offset:] if count is None else file[offset : offset + count])

    def size(self, path: str) -> int:
        """Bytes of a file; raises NotFound."""
        with self._lock:
            return len(self._file(path))

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        with self._lock:
            return path in self._files

    def names(self, prefix: str = "") -> list[str]:
        """Paths that begin with `prefix`, in order."""
        with self._lock:
            return sorted(path for path in self._files if path.startswith(prefix))

    def remove(self, path: str) -> None:
        """Raises NotFound."""
        with self._lock:
            self._num_bytes -= FILE_BYTES + len(self._file(path))
            del self._files[path]

    def clear(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._files = {}
            self._num_bytes = 0

    def _file(self, path: str) -> bytearray:
        try:
            return self._files[check_path(path)]
        except KeyError:
            raise NotFound(f"the scratch folder has no file {path!r}") from None

    def _write(self, path: str, data: bytes, append: bool) -> None:
        old = self._files.get(path)
        if old is None and len(self._files) >= MAX_FILES:
            raise QuotaExceeded(f"a scratch folder holds at most {MAX_FILES} files; {path!r} would be one more")
        grows = len(data) + (FILE_BYTES if old is None else 0 if append else -len(old))
        if self._num_bytes + grows > self._limit:
            raise QuotaExceeded(
                f"scratch_bytes: the limit is {self._limit}; {self._num_bytes} are used, {path!r} takes {grows} more"
            )
        if old is None or not append:
            self._files[path] = bytearray(data)
        else:
            old += data
        self._num_bytes += grows
