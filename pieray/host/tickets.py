"""Tickets: the results of what a guest has enqueued, each fetched once, each a value or a typed error."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from pieray.errors import BadHandle, Pending, PierayError, QuotaExceeded, WrongType

log = logging.getLogger(__name__)


class Kind(Enum):
    """Type of the value behind a ticket; named as the WIT's `take-*` functions."""

    NONE = "none"
    TOKENS = "tokens"
    FLOATS = "floats"
    TEXT = "text"
    DISTRIBUTION = "distribution"


class Ticket:
    """A result that comes.  Who keeps something behind it has a class of his own, whose `left` gives that back."""

    __slots__ = ("is_counted", "is_done", "is_open", "kind", "number", "result")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.number = 0  # in its table
        self.is_open = False  # from when it is issued until it is taken or forgotten
        self.is_counted = True  # against Limits.tickets
        self.is_done = False
        self.result: Any = None

    def value(self) -> Any:
        """What the guest takes; with the table's lock held."""
        return self.result

    def left(self, *, is_taken: bool) -> None:
        """The guest has taken the result, or has forgotten the ticket (or has ended): told once, without a lock."""


class WorkTicket(Ticket):
    """Of work outside of the device."""

    __slots__ = ("cancel", "settle")

    def __init__(self, kind: Kind, cancel: Callable[[], None] | None = None) -> None:
        super().__init__(kind)
        self.cancel = cancel
        """Stops the work, if the guest forgets the ticket before it is done."""
        self.settle: Callable[[bool], None] | None = None
        """Told whether the result was taken, if somebody keeps it until then."""

    def left(self, *, is_taken: bool) -> None:
        if self.settle is not None:
            self.settle(is_taken)
        elif self.cancel is not None and not self.is_done:
            self.cancel()


class TicketTable:
    """Tickets of one inferlet.  Issued on the guest's thread, resolved on any."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.has_news = False
        """Set with each result: whoever runs the guest lets it look, and clears this."""
        self._num_counted = 0
        self._next = 1
        self._tickets: dict[int, Ticket] = {}
        self.lock = threading.RLock()
        """The inferlet's: whoever has several steps to do as one holds it."""

    def __len__(self) -> int:
        return len(self._tickets)

    def issue(self, kind: Kind) -> int:
        """The number of a new ticket behind which nobody keeps anything.  Raises QuotaExceeded as `add`."""
        return self.add(Ticket(kind))

    def add(self, ticket: Ticket) -> int:
        """Open a ticket; its number.  Raises QuotaExceeded over `Limits.tickets`."""
        with self.lock:
            if self._num_counted >= self.limit:
                raise QuotaExceeded(f"tickets: the limit is {self.limit} issued and not taken; one more was asked for")
            number = ticket.number = self._next
            self._next += 1
            self._num_counted += 1
            ticket.is_open = True
            self._tickets[number] = ticket
            return number

    def number(self) -> int:
        """A number as a ticket's, for a command whose result nobody takes."""
        with self.lock:
            self._next += 1
            return self._next - 1

    def find(self, number: int) -> Ticket:
        """The open ticket with that number.  Raises BadHandle."""
        try:
            return self._tickets[number]
        except KeyError:
            raise BadHandle(f"ticket {number} is not open") from None

    def get(self, number: int) -> Ticket | None:
        """The same, or None."""
        return self._tickets.get(number)

    def uncount(self, number: int) -> None:
        """Stop counting a ticket against the limit: others stand for it (a pass with outputs)."""
        with self.lock:
            ticket = self._tickets.get(number)
            if ticket is not None and ticket.is_counted:
                ticket.is_counted = False
                self._num_counted -= 1

    def resolve(self, number: int, result: Any, settle: Callable[[bool], None] | None = None) -> bool:
        """Give a result (a PierayError is one).  False if the guest has forgotten the ticket.

        `settle`: see WorkTicket; not called if this is False.
        """
        with self.lock:
            ticket = self._tickets.get(number)
            if ticket is None or ticket.is_done:
                return False
            ticket.result = result
            ticket.is_done = self.has_news = True
            if settle is not None:
                assert isinstance(ticket, WorkTicket)
                ticket.settle = settle
            return True

    def ready(self, numbers: Iterable[int]) -> list[int]:
        """Those with results, in the order asked.  Raises BadHandle for a number that is no ticket."""
        table = self._tickets
        try:
            return [number for number in numbers if table[number].is_done]
        except KeyError as error:
            raise BadHandle(f"ticket {error.args[0]} is not open") from None

    def take(self, number: int, kind: Kind) -> Any:
        """The value, once.  Raises the error behind the ticket, Pending, WrongType or BadHandle."""
        with self.lock:
            ticket = self.find(number)
            if not ticket.is_done:
                raise Pending(f"ticket {number} has no result yet")
            failed = isinstance(ticket.result, PierayError)
            if ticket.kind is not kind and not failed:
                raise WrongType(f"ticket {number} yields {ticket.kind.value}; take-{kind.value} was called")
            value = ticket.value()
            self._remove(ticket)
        ticket.left(is_taken=True)
        if failed:  # one error may stand behind many tickets: each raise takes one of its own
            raise type(value)(value.message)
        return value

    def failure(self, number: int) -> PierayError | None:
        """The error behind an open ticket that has failed, to be raised by one caller; None otherwise."""
        ticket = self._tickets.get(number)
        if ticket is None or not isinstance(ticket.result, PierayError):
            return None
        return type(ticket.result)(ticket.result.message)

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget tickets; unknown ones are ignored."""
        for number in numbers:
            with self.lock:
                ticket = self._tickets.get(number)
                if ticket is None:
                    continue
                self._remove(ticket)
            ticket.left(is_taken=False)

    def close(self) -> None:
        """The guest has ended: forget all, whatever goes wrong with one."""
        for number in list(self._tickets):
            try:
                self.drop((number,))
            except BaseException:  # what the others keep must be given back all the same
                log.exception("what ticket %d kept could not be given back", number)

    def _remove(self, ticket: Ticket) -> None:
        del self._tickets[ticket.number]
        ticket.is_open = False
        if ticket.is_counted:
            self._num_counted -= 1

    def is_open(self, number: int) -> bool:
        return number in self._tickets
