"""Places of an InferletActor that the Controller has granted to clients, who launch there without asking it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pieray.errors import NoRoom


@dataclass(slots=True)
class _Grant:
    num_free: int
    num_used: int
    ends_at: float


class Grants:
    """Each is a number of places for a time.  Thread-safe.

        granted by the Controller:   num_free + num_used  of each grant  +  num_returned

    A place whose inferlet has ended is free again for the grant's client.  When the grant ends (its time is over, or
    `recall`), its free places go back to the Controller, the others as their inferlets end.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._grants: dict[str, _Grant] = {}
        self._num_granted = 0
        self._num_returned = 0
        self._lock = threading.Lock()

    def open(self, grant_id: str, num_places: int, lifetime_s: float) -> None:
        """The Controller grants places from now on."""
        with self._lock:
            assert grant_id not in self._grants, "ids are random"
            self._num_granted += num_places
            self._grants[grant_id] = _Grant(num_places, 0, self._now() + lifetime_s)

    def take(self, grant_id: str) -> None:
        """Take a place; raises NoRoom if the grant has ended, or none of its places is free."""
        with self._lock:
            self._end_old()
            grant = self._grants.get(grant_id)
            if grant is None or grant.ends_at == _ENDED:
                raise NoRoom("the grant has ended, or its places were called back: ask the Controller")
            if not grant.num_free:
                raise NoRoom(f"all {grant.num_used} places of the grant are taken: ask the Controller")
            grant.num_free -= 1
            grant.num_used += 1

    def give_back(self, grant_id: str) -> None:
        """The inferlet that had the place has left, or could not be started."""
        with self._lock:
            grant = self._grants[grant_id]
            grant.num_used -= 1
            grant.num_free += 1
            if grant.ends_at == _ENDED:
                self._end(grant_id, grant)

    def recall(self) -> None:
        """End all grants: what is free of them is needed elsewhere."""
        with self._lock:
            for grant_id, grant in list(self._grants.items()):
                self._end(grant_id, grant)

    @property
    def num_returned(self) -> int:
        """Places that have gone back to the Controller, in all."""
        with self._lock:
            self._end_old()
            return self._num_returned

    def check(self) -> None:
        """Raise AssertionError unless each place that was granted is accounted for."""
        with self._lock:
            held = {i: (g.num_free, g.num_used) for i, g in self._grants.items()}
            num_held = sum(free + used for free, used in held.values())
            assert num_held + self._num_returned == self._num_granted, (held, self._num_returned, self._num_granted)
            assert all(free >= 0 and used >= 0 for free, used in held.values()), held

    def _end_old(self) -> None:
        now = self._now()
        for grant_id, grant in list(self._grants.items()):
            if _ENDED < grant.ends_at <= now:
                self._end(grant_id, grant)

    def _end(self, grant_id: str, grant: _Grant) -> None:
        grant.ends_at = _ENDED
        self._num_returned += grant.num_free
        grant.num_free = 0
        if not grant.num_used:
            del self._grants[grant_id]


_ENDED = float("-inf")
