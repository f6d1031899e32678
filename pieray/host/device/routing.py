"""What a session with a device group hears on its two connections, and whom it is for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pieray.errors import PeerLost, error_from
from pieray.host.device.commands import TICKET_MASK
from pieray.host.device.device_user import DeviceUser
from pieray.messages import Completed, Failed, Message, RunEnded
from pieray.transport import Connection
from pieray.transport.lanes import Refused

HOST = 0
"""Inferlet number of the host's own requests."""


class DeviceLink:
    """One connection's service: forwards to the client's methods."""

    def __init__(
        self, on_messages: Callable[[list[Message]], None], on_lost: Callable[[PeerLost], None], on_refused: Refused
    ) -> None:
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._on_refused = on_refused

    def on_connect(self, conn: Connection) -> None:
        conn.on_refused = self._on_refused

    def on_messages(self, _conn: Connection, messages: list[Message]) -> None:
        self._on_messages(messages)

    def on_close(self, _conn: Connection, error: PeerLost) -> None:
        self._on_lost(error)


def inferlet_of(message: Message) -> int:
    """The inferlet that a command or request is of: its ticket begins with it, or it is named."""
    ticket: int = getattr(message, "ticket", 0)
    number: int = ticket >> 32 or getattr(message, "inferlet", HOST)
    return number


def result_of(message: Completed | Failed | RunEnded) -> object:
    if isinstance(message, Completed):
        return message.value
    if isinstance(message, RunEnded):
        return error_from(*message.error) if message.error else [message.reason, message.stopped_by]
    return error_from(message.code, message.message)


def tell_of_pages(tenant: DeviceUser, message: Completed | Failed) -> None:
    """An answer of the ResourceManager: to a request of the guest's by its ticket, else to one for pages."""
    ticket = message.ticket & TICKET_MASK
    if isinstance(message, Failed):
        error = error_from(message.code, message.message)
        tenant.ledger_answered(ticket, error) if ticket else tenant.lease_failed(error)
    elif ticket:
        tenant.ledger_answered(ticket, message.value)
    else:
        pages, num_found = message.value
        tenant.granted(np.frombuffer(pages, "<u4").tolist(), num_found)
