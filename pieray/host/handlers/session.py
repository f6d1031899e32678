"""WIT interface `session`: the client of this inferlet."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup
from pieray.host.tickets import Kind


class SessionHandlers(HandlerGroup):
    """Messages to and from the client."""

    def session_send(self, text: str) -> None:
        self._state.log.send(text)

    def session_receive(self) -> int:
        state = self._state
        ticket = state.tickets.issue(Kind.TEXT)
        state.mailbox.receive(ticket)
        return ticket
