"""Tickets: the results of enqueued commands, as awaitables."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from . import _host
from ._waiting import wait_ticket

T = TypeVar("T")


def wait(tickets: list[int], timeout_ms: int = -1) -> list[int]:
    """Block the whole inferlet until one of `tickets` has a result; those that have.  Prefer to await a Ticket."""
    return list(_host.tickets.wait(tickets, timeout_ms))


def take_none(ticket: int) -> None:
    """The result of a command that yields nothing."""
    _host.tickets.take_none(ticket)


def take_tokens(ticket: int) -> list[int]:
    """Token ids."""
    return list(_host.tickets.take_tokens(ticket))


def take_floats(ticket: int) -> list[float]:
    """Logits or log-probabilities."""
    return list(_host.tickets.take_floats(ticket))


def take_text(ticket: int) -> str:
    """A message."""
    return str(_host.tickets.take_text(ticket))


def take_distribution(ticket: int) -> tuple[list[int], list[float]]:
    """Token ids by falling probability, and their probabilities."""
    tokens, probabilities = _host.tickets.take_distribution(ticket)
    return list(tokens), list(probabilities)


def cancel(tickets: list[int]) -> None:
    """Forget tickets; commands already enqueued still run."""
    _host.tickets.cancel(tickets)


class Ticket(Generic[T]):
    """The result of a command: await it, once.  The wait of a cancelled task forgets the ticket."""

    __slots__ = ("_take", "id")

    def __init__(self, id: int, take: Callable[[int], T]) -> None:
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
