"""Calls of inferlets that run on the event loop of their actor, each with a ticket."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pieray.concurrency.loop_thread import Job, LoopThread, Work
from pieray.errors import QuotaExceeded
from pieray.host.device.tickets import Kind

if TYPE_CHECKING:
    from pieray.host.state import InstanceState


def start(state: InstanceState, loop: LoopThread, make: Callable[[], Work]) -> int:
    """A ticket that the text, or the error, of the coroutine resolves; a cancelled ticket cancels it."""
    job = Job(loop)
    ticket = state.begin(Kind.TEXT, cancel=job.cancel)
    try:
        job.start(make(), lambda result: state.complete(ticket, result))
    except BaseException:
        state.abandon(ticket)
        raise
    return ticket


class Calls:
    """Calls of one kind of one inferlet: so many at most run, or have answers that were not taken, at one time."""

    def __init__(self, state: InstanceState, what: str, limit: int) -> None:
        self._state = state
        self._what = what
        self._limit = limit
        self._tickets: set[int] = set()

    def start(self, make: Callable[[], Work]) -> int:
        """As `start`; raises QuotaExceeded."""
        self._tickets = {ticket for ticket in self._tickets if self._state.tickets.is_open(ticket)}
        if len(self._tickets) >= self._limit:
            raise QuotaExceeded(
                f"{self._what}: the limit is {self._limit} that run, or whose answers are not taken; "
                "one more was asked for"
            )
        ticket = start(self._state, self._state.services.loop, make)
        self._tickets.add(ticket)
        return ticket
