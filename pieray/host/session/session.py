"""Between an inferlet and its client: numbered events out, messages in, both bounded."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from pieray.config import Limits
from pieray.errors import Cancelled, InvalidRequest, QuotaExceeded
from pieray.host.tickets import Kind, Ticket, TicketTable
from pieray.messages import Event, file_part
from pieray.texts import byte_size, check_size

Sink = Callable[[list[Event]], None]
OUTPUTS = ("text", "data", "file")
ENDINGS = ("result", "error")
FILE_PART_BYTES = 1 << 20
"""Of a file that one event carries."""
EVENT_BYTES = 64
"""What an event takes at least, however short its text: so many bytes of a limit allow one event."""
FREE_EVENTS = 64
BACKLOG_BYTES = 16 << 20
"""Given to a client that attaches in one go: a long story in one piece would overrun its connection."""


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
        self._num_texts = 0
        self._num_logs = 0
        self._lock = threading.Lock()

    @property
    def is_ended(self) -> bool:
        return bool(self._events) and self._events[-1].kind in ENDINGS

    @property
    def ending(self) -> Event | None:
        """The "result" or "error" that ended the inferlet."""
        return self._events[-1] if self.is_ended else None

    @property
    def output_bytes(self) -> int:
        return self._output_bytes

    @property
    def num_bytes(self) -> int:
        """Of texts, logs and the ending."""
        return self._output_bytes + self._log_bytes

    @property
    def log_bytes(self) -> int:
        return self._log_bytes

    def send(self, text: str) -> None:
        """A message to the client.  Raises QuotaExceeded naming the limit."""
        size = byte_size(text)
        check_size("message_bytes", self._limits.message_bytes, size)
        self._output("text", text, size)

    def emit(self, name: str, value: str) -> None:
        """A structured event; `value` is JSON.  Raises QuotaExceeded naming the limit."""
        payload = f'{{"name": {json.dumps(name)}, "value": {value}}}'
        size = byte_size(payload)
        check_size("message_bytes", self._limits.message_bytes, size)
        self._output("data", payload, size)

    def send_file(self, name: str, data: bytes) -> None:
        """A file, in as many events as it needs, or, with QuotaExceeded, none."""
        if self._output_bytes + len(data) > self._limits.output_bytes:
            raise QuotaExceeded(
                f"output_bytes: the limit is {self._limits.output_bytes}; {self._output_bytes} are "
                f"used, {name!r} takes {len(data)} more"
            )
        for offset in range(0, max(len(data), 1), FILE_PART_BYTES):
            part = data[offset : offset + FILE_PART_BYTES]
            self._output("file", file_part(name, len(data), offset, part), len(part))

    def _output(self, kind: str, payload: str | bytes, size: int) -> None:
        if self._output_bytes + size > self._limits.output_bytes:
            raise QuotaExceeded(
                f"output_bytes: the limit is {self._limits.output_bytes}; "
                f"{self._output_bytes} are used, {size} more were given"
            )
        _check_number("output_bytes", self._limits.output_bytes, self._num_texts)
        self._output_bytes += size
        self._num_texts += 1
        self._append(kind, payload)

    def log(self, level: str, text: str) -> None:
        """A log line.  Raises QuotaExceeded over `Limits.log_bytes`."""
        size = byte_size(text)
        if self._log_bytes + size > self._limits.log_bytes:
            raise QuotaExceeded(
                f"log_bytes: the limit is {self._limits.log_bytes}; {self._log_bytes} are used, {size} more were given"
            )
        _check_number("log_bytes", self._limits.log_bytes, self._num_logs)
        self._log_bytes += size
        self._num_logs += 1
        self._append("log", f"{level}: {text}")

    def last_logs(self, count: int = 10, width: int = 500) -> list[str]:
        """The latest log lines, each cut at `width` characters."""
        found: deque[str] = deque(maxlen=count)
        for event in reversed(self._events):
            if event.kind == "log":
                found.appendleft(str(event.payload)[:width])
                if len(found) == count:
                    break
        return list(found)

    def end(self, kind: str, payload: str) -> bool:
        """Add the last event; False if there is one already."""
        return self._append(kind, payload)

    def subscribe(self, cursor: int, sink: Sink) -> bool:
        """Call `sink` with all events from `cursor` on, now and as they come, in order.

        False if that is too much to be given at once: the sink has the first of it, nothing follows by itself, and
        the client asks again from there.  Subscribing twice gives the past twice, the future once.
        """
        with self._lock:
            if not 0 <= cursor <= len(self._events):
                raise InvalidRequest(f"cursor is from 0 to {len(self._events)}; given {cursor}")
            end = self._backlog_end(cursor)
            if self._events[cursor:end]:
                sink(self._events[cursor:end])
            if end < len(self._events):
                return False
            if not self.is_ended and sink not in self._sinks:
                self._sinks.append(sink)
            return True

    def _backlog_end(self, cursor: int) -> int:
        num_bytes = 0
        for number in range(cursor, len(self._events)):
            num_bytes += EVENT_BYTES + byte_size(self._events[number].payload)
            if num_bytes > BACKLOG_BYTES and number > cursor:
                return number
        return len(self._events)

    def unsubscribe(self, sink: Sink) -> None:
        with self._lock:
            self._sinks = [s for s in self._sinks if s is not sink]

    def _append(self, kind: str, payload: str | bytes) -> bool:
        with self._lock:
            if self.is_ended:
                return False
            event = Event(self.instance_id, len(self._events), kind, payload)
            self._events.append(event)
            for sink in self._sinks:
                sink([event])
            if self.is_ended:
                self._sinks = []
            return True


def _check_number(name: str, limit: int, number: int) -> None:
    if number >= FREE_EVENTS + limit // EVENT_BYTES:
        raise QuotaExceeded(
            f"{name}: the limit is {limit}, and {EVENT_BYTES} are taken at least each time; "
            f"{number} were given, and one more"
        )


class ReceiveTicket(Ticket):
    """The client's next message."""

    __slots__ = ("_mailbox", "size")

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__(Kind.TEXT)
        self._mailbox = mailbox
        self.size = 0  # of the message behind it

    def left(self, *, is_taken: bool) -> None:  # noqa: ARG002 - as Ticket.left
        self._mailbox.left(self)


class Mailbox:
    """Messages of the client that the inferlet has not received, and receives that wait for one."""

    def __init__(self, limits: Limits, tickets: TicketTable) -> None:
        self._limits = limits
        self._tickets = tickets
        self._texts: deque[str] = deque()
        self._bytes = 0  # of messages that the guest has not taken
        self._waiting: OrderedDict[ReceiveTicket, None] = OrderedDict()
        self._closed = False
        self._lock = tickets.lock

    def put(self, text: str) -> None:
        """A message of the client.  Raises QuotaExceeded when the mailbox is full, Cancelled after the end."""
        size = byte_size(text)
        check_size("message_bytes", self._limits.message_bytes, size)
        with self._lock:
            if self._closed:
                raise Cancelled("the inferlet has ended; it receives no messages")
            if self._bytes + size > self._limits.mailbox_bytes:
                raise QuotaExceeded(
                    f"mailbox_bytes: the limit is {self._limits.mailbox_bytes}; "
                    f"{self._bytes} wait unread, {size} more were given"
                )
            self._bytes += size
            self._texts.append(text)
            self._give()

    def receive(self) -> int:
        """A ticket for the next message, now or when it comes.  Raises QuotaExceeded."""
        with self._lock:
            ticket = ReceiveTicket(self)
            self._tickets.add(ticket)
            self._waiting[ticket] = None
            self._give()
            return ticket.number

    def _give(self) -> None:
        while self._texts and self._waiting:
            ticket, _ = self._waiting.popitem(last=False)
            text = self._texts.popleft()
            ticket.size = byte_size(text)
            self._tickets.resolve(ticket.number, text)

    def left(self, ticket: ReceiveTicket) -> None:
        """The guest has the message, or wants it no more; one that had not come goes to the next receive."""
        with self._lock:
            self._waiting.pop(ticket, None)
            self._bytes -= ticket.size

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._texts.clear()
