"""Tickets: the results of what a guest has enqueued, each fetched once, each a value or a typed error."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from enum import Enum
from typing import Any

from pieray.errors import BadHandle, Pending, PierayError, QuotaExceeded, WrongType


class Kind(Enum):
    """Type of the value behind a ticket; named as the WIT's `take-*` functions."""

    NONE = "none"
    TOKENS = "tokens"
    FLOATS = "floats"
    TEXT = "text"
    DISTRIBUTION = "distribution"


class _Ticket:
    __slots__ = ("counted", "done", "kind", "result")

    def __init__(self, kind: Kind, counted: bool) -> None:
        self.kind = kind
        self.counted = counted
        self.done = False
        self.result: Any = None


class TicketTable:
    """Tickets of one inferlet.  Issued on the guest's thread, resolved on a reader thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._num_counted = 0
        self._next = 1
        self._tickets: dict[int, _Ticket] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tickets)

    def issue(self, kind: Kind) -> int:
        """A new ticket without a result.  Raises QuotaExceeded over `Limits.tickets`."""
        with self._lock:
            if self._num_counted >= self.limit:
                raise QuotaExceeded(f"tickets: the limit is {self.limit} issued and not taken; one more was asked for")
            ticket = self._next
            self._next += 1
            self._num_counted += 1
            self._tickets[ticket] = _Ticket(kind, counted=True)
            return ticket

    def number(self) -> int:
        """A number as a ticket's, for a command whose result nobody takes."""
        with self._lock:
            self._next += 1
            return self._next - 1

    def uncount(self, ticket: int) -> None:
        """Stop counting a ticket against the limit: others stand for it (a pass with outputs)."""
        with self._lock:
            entry = self._tickets.get(ticket)
            if entry is not None and entry.counted:
                entry.counted = False
                self._num_counted -= 1

    def resolve(self, ticket: int, result: Any) -> bool:
        """Give a result (a PierayError is one).  False if the guest has forgotten the ticket."""
        with self._lock:
            entry = self._tickets.get(ticket)
            if entry is None or entry.done:
                return False
            entry.result = result
            entry.done = True
            return True

    def ready(self, tickets: Iterable[int]) -> list[int]:
        """Those with results, in the order asked.  Raises BadHandle for a number that is no ticket."""
        table = self._tickets
        try:
            return [t for t in tickets if table[t].done]
        except KeyError as error:
            raise BadHandle(f"ticket {error.args[0]} is not open") from None

    def take(self, ticket: int, kind: Kind) -> Any:
        """The value, once.  Raises the error behind the ticket, Pending, WrongType or BadHandle."""
        with self._lock:
            entry = self._tickets.get(ticket)
            if entry is None:
                raise BadHandle(f"ticket {ticket} is not open")
            if not entry.done:
                raise Pending(f"ticket {ticket} has no result yet")
            failed = isinstance(entry.result, PierayError)
            if entry.kind is not kind and not failed:
                raise WrongType(f"ticket {ticket} yields {entry.kind.value}; take-{kind.value} was called")
            self._forget(ticket, entry)
        if failed:  # one error may stand behind many tickets: each raise takes one of its own
            raise type(entry.result)(entry.result.message)
        return entry.result

    def failure(self, ticket: int) -> PierayError | None:
        """The error behind an open ticket that has failed, to be raised by one caller; None otherwise."""
        entry = self._tickets.get(ticket)
        if entry is None or not isinstance(entry.result, PierayError):
            return None
        return type(entry.result)(entry.result.message)

    def drop(self, tickets: Iterable[int]) -> None:
        """Forget tickets; unknown ones are ignored."""
        with self._lock:
            for ticket in tickets:
                entry = self._tickets.get(ticket)
                if entry is not None:
                    self._forget(ticket, entry)

    def _forget(self, ticket: int, entry: _Ticket) -> None:
        del self._tickets[ticket]
        if entry.counted:
            self._num_counted -= 1

    def is_open(self, ticket: int) -> bool:
        return ticket in self._tickets
