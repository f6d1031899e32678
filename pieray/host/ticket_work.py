"""Work of one inferlet outside of the device, with a ticket each: what the world, other actors, its client answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pieray.concurrency.loop_thread import Job, LoopThread, Work
from pieray.errors import QuotaExceeded
from pieray.host.tickets import Kind, TicketTable, WorkTicket

log = logging.getLogger(__name__)


def _nothing() -> None: ...


class TicketWork:
    """Thread-safe.  `wake` lets the guest look at its tickets again."""

    def __init__(
        self, name: str, tickets: TicketTable, *, prefetch: Callable[[], None], wake: Callable[[], None]
    ) -> None:
        """`name`: the inferlet's, for the log.  `prefetch` brings back pages of a guest that will go on."""
        self._name = name
        self._prefetch = prefetch
        self._closers: list[Callable[[], None]] = []
        self.tickets = tickets
        self.wake = wake
        self.is_closed = False

    def begin(self, kind: Kind, cancel: Callable[[], None] | None = None) -> int:
        """A ticket for work, ended by `complete`; `cancel` stops that work.  Raises QuotaExceeded."""
        return self.tickets.add(WorkTicket(kind, cancel))

    def on_cancel(self, ticket: int, cancel: Callable[[], None]) -> None:
        """What stops the work behind a ticket of `begin`."""
        found = self.tickets.get(ticket)
        if isinstance(found, WorkTicket):
            found.cancel = cancel

    def complete(self, ticket: int, result: object, settle: Callable[[bool], None] | None = None) -> bool:
        """The work has its result, or failed with a PierayError; from any thread.  False: the guest forgot it.

        `settle` is told whether the guest takes the result, unless this is False.
        """
        is_wanted = self.tickets.resolve(ticket, result, settle)
        if is_wanted:
            self._prefetch()
        self.wake()
        return is_wanted

    def abandon(self, ticket: int) -> None:
        """The work of a ticket could not begin: nobody is told."""
        self.on_cancel(ticket, _nothing)
        self.tickets.drop((ticket,))

    def at_end(self, call: Callable[[], None]) -> None:
        """Call it when the guest has ended, the last given first: it gives back what is held elsewhere."""
        self._closers.append(call)

    def close(self) -> None:
        """The guest has ended: stop the work, give back what is held elsewhere."""
        self.is_closed = True
        self.tickets.close()
        while self._closers:
            try:
                self._closers.pop()()
            except BaseException:  # the others must be called all the same
                log.exception("%s: what it held could not be given back", self._name)


class LoopCalls:
    """Calls of one kind on the event loop of the actor: so many at most run, or have answers that were not taken."""

    def __init__(self, work: TicketWork, loop: LoopThread, what: str, limit: int) -> None:
        self._work = work
        self._loop = loop
        self._what = what
        self._limit = limit
        self._tickets: set[int] = set()

    def start(self, make: Callable[[], Work]) -> int:
        """A ticket that the text, or the error, of the coroutine resolves; a cancelled ticket cancels it.

        Raises QuotaExceeded.
        """
        self._tickets = {ticket for ticket in self._tickets if self._work.tickets.is_open(ticket)}
        if len(self._tickets) >= self._limit:
            raise QuotaExceeded(
                f"{self._what}: the limit is {self._limit} that run, or whose answers are not taken; "
                "one more was asked for"
            )
        job = Job(self._loop)
        ticket = self._work.begin(Kind.TEXT, cancel=job.cancel)
        try:
            job.start(make(), lambda result: self._work.complete(ticket, result))
        except BaseException:
            self._work.abandon(ticket)
            raise
        self._tickets.add(ticket)
        return ticket
