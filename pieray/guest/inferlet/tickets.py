"""Tickets: the results of enqueued commands, as awaitables."""

from __future__ import annotations

from collections.abc import Callable, Generator
from copy import copy
from typing import Any, Generic, TypeVar

from . import _host
from ._waiting import wait_ticket, wake_waiters
from .errors import Cancelled, Error, Pending

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
    """The result of a command: await it, in any number of tasks and as often as wanted.

    It is fetched from the host once and kept here.  When a task that waits for it is cancelled and no other waits,
    the ticket is forgotten.
    """

    __slots__ = ("_error", "_is_long", "_is_over", "_result", "_take", "id")

    def __init__(self, id: int, take: Callable[[int], T], *, is_long: bool = False) -> None:
        """`is_long`: others may have this inferlet's memory for as long as it waits for nothing else."""
        self.id = id
        self._is_long = is_long
        self._take = take
        self._is_over = False
        self._result: T
        self._error: Exception | None = None

    def __await__(self) -> Generator[Any, None, T]:
        yield from self.arrive().__await__()
        return self.take()

    async def arrive(self) -> None:
        """Return once the result is there to `take`."""
        if self._is_over:
            return
        try:
            await wait_ticket(self.id, is_long=self._is_long)
        except Error:
            if not self._is_over:  # else another task has taken or cancelled it meanwhile
                raise

    def take(self) -> T:
        """The result, without waiting.  Raises Pending if there is none yet."""
        if not self._is_over:
            self._fetch()
        if self._error is not None:
            raise copy(self._error)  # each who awaits it gets a traceback of his own
        return self._result

    def _fetch(self) -> None:
        try:
            self._result = self._take(self.id)
        except Pending:
            raise
        except Exception as error:  # whatever it is, all who await the ticket get it
            self._error = error
        self._end()

    def _end(self) -> None:
        self._is_over = True
        wake_waiters(self.id)

    def cancel(self) -> None:
        """Forget the result; a command already enqueued still runs.  Who waits for it gets Cancelled."""
        cancel([self.id])
        self._error = Cancelled("the ticket was cancelled")
        self._end()
