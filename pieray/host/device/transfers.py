"""Bytes of passes under way: what goes to the batcher with them, and what comes back until the guest has taken it."""

from __future__ import annotations

import threading

from pieray.config import Limits
from pieray.errors import QuotaExceeded

FREE_BYTES = 4 << 20
"""What an inferlet may have under way, whatever the others of its actor have."""
ACTOR_FACTOR = 4
"""All inferlets of an actor may have so many times `Limits.pass_bytes` under way, beside FREE_BYTES each."""
SMALL_BYTES = 4096
"""Less than this in one command is not counted: `Limits.tickets` bounds it."""


class ActorTransfers:
    """What all inferlets of an actor have under way: it is this that memory of the actor and of its Batcher must hold.

    Thread-safe.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, limits: Limits) -> ActorTransfers:
        """As the engine's limits allow."""
        return cls(ACTOR_FACTOR * limits.pass_bytes)

    def add(self, num_bytes: int, num_own: int, what: str) -> None:
        """Count more for an inferlet that has `num_own` already.  Raises QuotaExceeded."""
        with self._lock:
            if num_own + num_bytes > FREE_BYTES and self.num_bytes + num_bytes > self.limit:
                raise QuotaExceeded(
                    f"pass_bytes: all inferlets of an actor may have {self.limit} under way together; {self.num_bytes} "
                    f"are, {what} {num_bytes} more: ask again later"
                )
            self.num_bytes += num_bytes

    def remove(self, num_bytes: int) -> None:
        """So much is not under way any more."""
        with self._lock:
            self.num_bytes -= num_bytes


class Transfers:
    """What one inferlet has under way, by ticket.  All methods are called with the instance's lock held.

    What goes with a command (masks, embeddings, lists) counts until the command has ended; a result counts from when it
    is asked for until it has been computed *and* taken: a guest that forgets its ticket does not call it back.
    """

    def __init__(self, limit: int, actor: ActorTransfers) -> None:
        self._limit = limit
        self._actor = actor
        self._held: dict[int, int] = {}
        self._at_work: set[int] = set()  # commands that have not ended, results that are not computed
        self._untaken: set[int] = set()  # results that the guest may still take
        self.num_bytes = 0

    def hold(self, ticket: int, num_bytes: int, what: str) -> None:
        """Count what goes with a command.  Raises QuotaExceeded; `what` begins its last clause and ends in "have"."""
        if num_bytes >= SMALL_BYTES:
            self._add(ticket, num_bytes, what)
            self._at_work.add(ticket)

    def expect(self, ticket: int, num_bytes: int, what: str) -> None:
        """Count a result that is asked for.  Raises QuotaExceeded, as `hold`."""
        if num_bytes >= SMALL_BYTES:
            self._add(ticket, num_bytes, what)
            self._at_work.add(ticket)
            self._untaken.add(ticket)

    def ended(self, ticket: int) -> None:
        """The command has ended, or the result is computed or has failed."""
        if ticket in self._at_work:
            self._at_work.remove(ticket)
            self._remove_if_over(ticket)

    def forgotten(self, ticket: int) -> None:
        """The guest has taken the result, or has cancelled its ticket: the batcher may compute it all the same."""
        if ticket in self._untaken:
            self._untaken.remove(ticket)
            self._remove_if_over(ticket)

    def close(self) -> None:
        """The guest has ended; idempotent."""
        for ticket in list(self._held):
            self._at_work.discard(ticket)
            self._untaken.discard(ticket)
            self._remove_if_over(ticket)

    def _add(self, ticket: int, num_bytes: int, what: str) -> None:
        if self.num_bytes + num_bytes > self._limit:
            raise QuotaExceeded(
                f"pass_bytes: the limit is {self._limit}; {self.num_bytes} are under way, {what} "
                f"{num_bytes} more: take results before asking for more"
            )
        self._actor.add(num_bytes, self.num_bytes, what)
        self.num_bytes += num_bytes
        self._held[ticket] = self._held.get(ticket, 0) + num_bytes

    def _remove_if_over(self, ticket: int) -> None:
        if ticket not in self._at_work and ticket not in self._untaken:
            num_bytes = self._held.pop(ticket)
            self.num_bytes -= num_bytes
            self._actor.remove(num_bytes)
