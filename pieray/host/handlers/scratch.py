"""WIT interface `scratch`: files in memory."""

from __future__ import annotations

from pieray.errors import InvalidRequest
from pieray.host.session.scratch import ScratchFolder
from pieray.texts import from_base64, to_base64

MAX_CALL_BYTES = 1 << 18
"""Moved in one call at most: it runs on the thread of all guests."""


class ScratchHandlers:
    """The scratch folder; bytes travel as base64."""

    def __init__(self, folder: ScratchFolder) -> None:
        self._folder = folder

    def write(self, path: str, data: str, append: bool) -> None:
        if len(data) > MAX_CALL_BYTES * 4 // 3 + 4:
            raise InvalidRequest(
                f"one call writes at most {MAX_CALL_BYTES} bytes; given about {len(data) * 3 // 4}; "
                "write the rest with `append`"
            )
        self._folder.write(path, from_base64(data), append=append)

    def read(self, path: str, offset: int, count: int) -> str:
        """At most 256 KiB, however much is asked for."""
        return to_base64(self._folder.read(path, offset, min(count, MAX_CALL_BYTES)))

    def size(self, path: str) -> int:
        return self._folder.size(path)

    def names(self, prefix: str) -> list[str]:
        return self._folder.names(prefix)

    def remove(self, path: str) -> None:
        self._folder.remove(path)
