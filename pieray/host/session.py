"""Between an inferlet and its client: numbered events out, messages in, both bounded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from pieray.config import Limits
from pieray.errors import Cancelled, InvalidRequest, QuotaExceeded
from pieray.messages import Event

Sink = Callable[[list[Event]], None]
ENDINGS = ("result", "error")


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class EventLog:
    """What an inferlet has told its client, kept so that a client may attach late or again.

    Bounded by `Limits.output_bytes` (and log lines by `Limits.log_bytes`); the last event is a "result"
    or an "error", which is never refused.
    """

    def __init__(self, instance_id: str, limits: Limits) -> None:
        self.instance_id = instance_id
        self._limits = limits
        self._events: list[Event] = []
        self._sinks: list[Sink] = []
        self._output_bytes = 0
        self._log_bytes = 0
        self._lock = threading.Lock()

    @property
    def is_ended(self) -> bool:
        return bool(self._events) and self._events[-1].kind in ENDINGS

    @property
    def output_bytes(self) -> int:
        return self._output_bytes

    @property
    def log_bytes(self) -> int:
        return self._log_bytes

    def send(self, text: str) -> None:
        """A message to the client.  Raises QuotaExceeded naming the limit."""
        size = _size(text)
        if size > self._limits.message_bytes:
            raise QuotaExceeded(f"message_bytes: the limit is {self._limits.message_bytes}; given {size}")
        if self._output_bytes + size > self._limits.output_bytes:
            raise QuotaExceeded(f"output_bytes: the limit is {self._limits.output_bytes}; "
                                f"{self._output_bytes} are used, {size} more were given")  # fmt: skip
        self._output_bytes += size
        self._append("text", text)

    def log(self, level: str, text: str) -> None:
        """A log line.  Raises QuotaExceeded over `Limits.log_bytes`."""
        size = _size(text)
        if self._log_bytes + size > self._limits.log_bytes:
            raise QuotaExceeded(f"log_bytes: the limit is {self._limits.log_bytes}; "
                                f"{self._log_bytes} are used, {size} more were given")  # fmt: skip
        self._log_bytes += size
        self._append("log", f"{level}: {text}")

    def end(self, kind: str, payload: str) -> bool:
        """Add the last event; False if there is one already."""
        return self._append(kind, payload)

    def subscribe(self, cursor: int, sink: Sink) -> None:
        """Call `sink` with all events from `cursor` on, now and as they come, in order."""
        if not 0 <= cursor <= len(self._events):
            raise InvalidRequest(f"cursor is from 0 to {len(self._events)}; given {cursor}")
        with self._lock:
            if self._events[cursor:]:
                sink(self._events[cursor:])
            self._sinks.append(sink)

    def unsubscribe(self, sink: Sink) -> None:
        with self._lock:
            self._sinks = [s for s in self._sinks if s is not sink]

    def _append(self, kind: str, payload: str) -> bool:
        with self._lock:
            if self.is_ended:
                return False
            event = Event(self.instance_id, len(self._events), kind, payload)
            self._events.append(event)
            for sink in self._sinks:
                sink([event])
            return True


class Mailbox:
    """Messages of the client that the inferlet has not received, and receives that wait for one."""

    def __init__(self, limits: Limits, resolve: Callable[[int, object], bool]) -> None:
        self._limits = limits
        self._resolve = resolve
        self._texts: deque[str] = deque()
        self._bytes = 0
        self._waiting: deque[int] = deque()
        self._closed = False
        self._lock = threading.Lock()

    def put(self, text: str) -> None:
        """A message of the client.  Raises QuotaExceeded when the mailbox is full, Cancelled after the end."""
        size = _size(text)
        if size > self._limits.message_bytes:
            raise QuotaExceeded(f"message_bytes: the limit is {self._limits.message_bytes}; given {size}")
        with self._lock:
            if self._closed:
                raise Cancelled("the inferlet has ended; it receives no messages")
            while self._waiting:
                if self._resolve(self._waiting.popleft(), text):
                    return
            if self._bytes + size > self._limits.mailbox_bytes:
                raise QuotaExceeded(f"mailbox_bytes: the limit is {self._limits.mailbox_bytes}; "
                                    f"{self._bytes} wait unread, {size} more were given")  # fmt: skip
            self._texts.append(text)
            self._bytes += size

    def receive(self, ticket: int) -> None:
        """Resolve the ticket with the next message, now or when it comes."""
        with self._lock:
            if self._texts:
                text = self._texts.popleft()
                self._bytes -= _size(text)
                self._resolve(ticket, text)
            else:
                self._waiting.append(ticket)

    def cancel(self, ticket: int) -> None:
        """Forget a receive, so that the next message goes to another."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._texts.clear()
            self._bytes = 0
