"""WIT interface `session`: the client of this inferlet."""

from __future__ import annotations

from pieray.errors import InvalidRequest
from pieray.host.device.tickets import Kind
from pieray.host.handlers.base import HandlerGroup
from pieray.texts import parse_json

MAX_NAME = 128


class SessionHandlers(HandlerGroup):
    """Messages, events and files to and from the client."""

    def send(self, text: str) -> None:
        self._state.log.send(text)

    def receive(self) -> int:
        return self._state.mailbox.receive()

    def emit(self, name: str, value: str) -> None:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise InvalidRequest(f"the name of an event has from 1 to {MAX_NAME} printable characters; given {name!r}")
        self._check_text_size(value)  # it is parsed here
        try:
            parse_json(value)
        except ValueError as error:
            raise InvalidRequest(f"the value of event {name!r} is not JSON: {error}") from None
        self._state.log.emit(name, value)

    def send_file(self, path: str) -> None:
        state = self._state
        state.log.send_file(path, state.scratch.read(path))

    def receive_file(self) -> int:
        state = self._state
        ticket = state.begin(Kind.TEXT)
        state.on_cancel(ticket, lambda: state.files.cancel(ticket))
        state.files.receive(ticket)
        return ticket
