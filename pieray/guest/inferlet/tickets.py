"""Tickets: the results of enqueued commands, as awaitables."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from . import _host
from ._loop import wait_ticket
from .errors import raises

T = TypeVar("T")

wait_any = raises(lambda ids, timeout_ms=-1: _host.tickets.wait(ids, timeout_ms))
take_none = raises(lambda ticket: _host.tickets.take_none(ticket))
take_tokens = raises(lambda ticket: _host.tickets.take_tokens(ticket))
take_floats = raises(lambda ticket: _host.tickets.take_floats(ticket))
take_text = raises(lambda ticket: _host.tickets.take_text(ticket))
take_distribution = raises(lambda ticket: _host.tickets.take_distribution(ticket))
cancel = raises(lambda ids: _host.tickets.cancel(ids))


class Ticket(Generic[T]):
    """The result of a command: await it, once.  The wait of a cancelled task forgets the ticket."""

    __slots__ = ("_take", "id")

    def __init__(self, id: int, take: Callable[[int], T]) -> None:  # noqa: A002 - the WIT's term
        self.id = id
        self._take = take

    def __await__(self) -> Generator[Any, None, T]:
        yield from wait_ticket(self.id).__await__()
        return self._take(self.id)

    def take(self) -> T:
        """The result, without waiting.  Raises Pending if there is none yet."""
        return self._take(self.id)

    def cancel(self) -> None:
        """Forget the result; a command already enqueued still runs."""
        cancel([self.id])
