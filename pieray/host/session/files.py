"""Files that a client sends to its inferlet: in parts, into the scratch folder, received one by one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from pieray.errors import Cancelled, InvalidRequest, QuotaExceeded
from pieray.host.session.scratch import ScratchFolder, check_path
from pieray.messages import SendFile

FOLDER = "in"
MAX_UNREAD = 1024


class FileInbox:
    """Files that the inferlet has not received, and receives that wait for one.  Thread-safe."""

    def __init__(self, scratch: ScratchFolder, complete: Callable[[int, object], bool]) -> None:
        self._scratch = scratch
        self._complete = complete
        self._paths: deque[str] = deque()
        self._waiting: deque[int] = deque()
        self._is_closed = False
        self._lock = threading.Lock()

    def put(self, name: str, data: bytes) -> None:
        """A file of the client, to `in/NAME`, with a number if that is taken.

        Raises InvalidRequest for a name that is no path, QuotaExceeded, Cancelled after the inferlet's end.
        """
        with self._lock:
            if self._is_closed:
                raise Cancelled("the inferlet has ended; it receives no files")
            if len(self._paths) >= MAX_UNREAD:
                raise QuotaExceeded(f"{MAX_UNREAD} files wait unread, and that is the limit")
            path = self._scratch.write_new(f"{FOLDER}/{check_path(name)}", data)
            while self._waiting:
                if self._complete(self._waiting.popleft(), path):
                    return
            self._paths.append(path)

    def receive(self, ticket: int) -> None:
        """Resolve the ticket with the path of the next file, now or when it comes."""
        with self._lock:
            if self._paths:
                self._complete(ticket, self._paths.popleft())
            else:
                self._waiting.append(ticket)

    def cancel(self, ticket: int) -> None:
        """Forget a receive, so that the next file goes to another."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._paths.clear()
            self._waiting.clear()


class Uploads:
    """Files of one connection of which not all parts have come; one for each inferlet at a time."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[str, bytearray]] = {}  # by instance id: name, what has come

    def add(self, part: SendFile, limit: int) -> bytes | None:
        """The whole file, if this was its last part.  Raises InvalidRequest for a part that does not follow the one
        before it, QuotaExceeded for a file of more than `limit` bytes; the file is forgotten then."""
        name, data = self._parts.pop(part.instance_id, (part.name, bytearray()))
        if part.offset == 0:
            name, data = part.name, bytearray()
        if (part.name, part.offset) != (name, len(data)):
            raise InvalidRequest(f"byte {len(data)} of {name!r} is next; given byte {part.offset} of {part.name!r}")
        if part.offset + len(part.data) > limit:
            raise QuotaExceeded(f"scratch_bytes: the limit is {limit}; {name!r} has more")
        data += part.data
        if part.is_last:
            return bytes(data)
        self._parts[part.instance_id] = name, data
        return None
