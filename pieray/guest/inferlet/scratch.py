"""The scratch folder: files in memory, empty at first, gone with the inferlet.

scratch.write("notes/a.txt", "text")        # or bytes
with scratch.open("notes/a.txt", "a") as file:
    print("more", file=file)
scratch.read("notes/a.txt")                 # bytes; scratch.read_text(...) for text
"""

from __future__ import annotations

import base64
import io
from typing import IO, Any

from . import _convert, _host
from .errors import InvalidRequest, NotFound

CALL_BYTES = 1 << 18
"""Moved by one call of the host at most."""
MODES = ("r", "w", "a", "x")


def write(path: str, data: str | bytes, append: bool = False) -> None:
    """Write text (as UTF-8) or bytes: in place of what is there, or behind it.  Raises QuotaExceeded."""
    raw = memoryview(_bytes(data))
    for start in range(0, max(len(raw), 1), CALL_BYTES):
        text = base64.b64encode(raw[start : start + CALL_BYTES]).decode()
        _host.scratch.write(path, text, append or start > 0)


def read(path: str, offset: int = 0, count: int | None = None) -> bytes:
    """Up to `count` bytes from `offset`, all of them for None.  Raises NotFound."""
    offset = _convert.u64("offset", offset)
    count = count if count is None else _convert.u64("count", count)
    parts: list[bytes] = []
    end = None if count is None else offset + count
    while True:
        asked = CALL_BYTES if end is None else min(CALL_BYTES, end - offset)
        part = base64.b64decode(_host.scratch.read(path, offset, asked))
        parts.append(part)
        offset += len(part)
        if not part or offset == end:
            return b"".join(parts)


def read_text(path: str) -> str:
    """The whole file as UTF-8 text.  Raises NotFound, and UnicodeDecodeError for other bytes."""
    return read(path).decode()


def size(path: str) -> int:
    """Bytes of a file.  Raises NotFound."""
    return int(_host.scratch.size(path))


def names(prefix: str = "") -> list[str]:
    """Paths of the files that begin with `prefix`, in order."""
    return list(_host.scratch.names(prefix))


def remove(path: str) -> None:
    """Raises NotFound."""
    _host.scratch.remove(path)


def exists(path: str) -> bool:
    """Whether there is a file by that name."""
    try:
        size(path)
    except NotFound:
        return False
    return True


def open(path: str, mode: str = "r", newline: str | None = None) -> IO[Any]:  # noqa: A001 - as Python calls it
    """A file object as of the built-in `open`: "r", "w", "a" or "x", with "b" for bytes.

    What is written lands in the folder when the file is closed or flushed.  Raises NotFound, and FileExistsError
    for "x" with a file that is there.
    """
    _convert.text("mode", mode)
    kind = mode.replace("b", "", 1).replace("t", "", 1)
    if kind not in MODES or ("b" in mode and "t" in mode):
        raise ValueError(f"mode is 'r', 'w', 'a' or 'x', with 'b' or 't'; given {mode!r}")
    if kind == "x" and exists(path):
        raise FileExistsError(path)
    raw: Any = io.BytesIO(read(path)) if kind == "r" else _Writer(path, append=kind == "a")
    return raw if "b" in mode else io.TextIOWrapper(raw, encoding="utf-8", newline=newline)


def _bytes(data: Any) -> Any:
    """Text as UTF-8; what else has the buffer interface, as it is."""
    if isinstance(data, str):
        return _convert.text("data", data).encode()
    try:
        return bytes(memoryview(data))
    except TypeError:
        raise InvalidRequest(f"data is text or bytes; given {_convert.shown(data)}") from None


class _Writer(io.BufferedIOBase):
    """Gathers what is written, and passes it on in pieces of CALL_BYTES and at `flush` and `close`."""

    def __init__(self, path: str, *, append: bool) -> None:
        self.name = path
        self._pending = bytearray()
        if not append or not exists(path):
            write(path, b"")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("the file is closed")
        view = memoryview(data).cast("B")
        self._pending += view
        if len(self._pending) >= CALL_BYTES:
            self.flush()
        return len(view)

    def flush(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            write(self.name, bytes(pending), append=True)
