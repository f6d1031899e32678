"""WIT interface `session`: the client of this inferlet."""

from __future__ import annotations

from pieray.errors import InvalidRequest
from pieray.host.handlers.slow_work import SlowWork
from pieray.host.session.files import FileInbox
from pieray.host.session.scratch import ScratchFolder
from pieray.host.session.session import EventLog, Mailbox
from pieray.host.ticket_work import TicketWork
from pieray.host.tickets import Kind
from pieray.texts import parse_json

MAX_NAME = 128


class SessionHandlers:
    """Messages, events and files to and from the client."""

    def __init__(
        self,
        log: EventLog,
        mailbox: Mailbox,
        scratch: ScratchFolder,
        files: FileInbox,
        slow: SlowWork,
        work: TicketWork,
    ) -> None:
        self._log = log
        self._mailbox = mailbox
        self._scratch = scratch
        self._files = files
        self._slow = slow
        self._work = work

    def send(self, text: str) -> None:
        self._log.send(text)

    def receive(self) -> int:
        return self._mailbox.receive()

    def emit(self, name: str, value: str) -> None:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise InvalidRequest(f"the name of an event has from 1 to {MAX_NAME} printable characters; given {name!r}")
        self._slow.check_text(value)  # it is parsed here
        try:
            parse_json(value)
        except ValueError as error:
            raise InvalidRequest(f"the value of event {name!r} is not JSON: {error}") from None
        self._log.emit(name, value)

    def send_file(self, path: str) -> None:
        self._log.send_file(path, self._scratch.read(path))

    def receive_file(self) -> int:
        ticket = self._work.begin(Kind.TEXT)
        self._work.on_cancel(ticket, lambda: self._files.cancel(ticket))
        self._files.receive(ticket)
        return ticket
