"""A client's places: what the Controller has granted it, so that a launch goes straight to an InferletActor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pieray.concurrency.stalls import RemoteClock
from pieray.errors import NoAnswer, PierayError
from pieray.transport import Endpoint

MOST_PLACES = 64
"""That are asked for at one time."""
WAIT_S = 30.0
"""For what another thread has asked for; longer than asking takes."""
REFUSED_S = 1.0
"""After the Controller had no place to grant, it is asked again after so long at the earliest."""

Ask = Callable[[int], Sequence[Sequence[Any]]]
"""Asks the Controller for so many places: of each actor [endpoint, id, places, seconds, clock of the actor]; none: it
has none."""


class Grant:
    """Places on one actor, for a time."""

    def __init__(self, granted: Sequence[Any], asked_at: float) -> None:
        wire, self.id, self.num_places, lifetime_s, clock = granted
        self.endpoint = Endpoint.from_wire(wire)
        self.ends_at = asked_at + lifetime_s
        """By this process's time.monotonic; a little earlier than by the actor's."""
        self.clock = RemoteClock()
        self.clock.update(clock)
        self.num_used = 0


class Placements:
    """Thread-safe.  Many that want places at once ask for them together."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._grants: list[Grant] = []
        self._num_waiting = 0
        self._is_asking = False
        self._num_asks = 0  # that have ended
        self._failed: PierayError | None = None  # the last of them
        self._refused_at = float("-inf")
        self._changed = threading.Condition()

    def take(self) -> Grant | None:
        """A grant with a place taken in it, to be given back; None: the Controller has no place to grant at present.

        Raises what asking the Controller does.
        """
        with self._changed:
            self._num_waiting += 1
            try:
                return self._take()
            finally:
                self._num_waiting -= 1

    def take_many(self, count: int) -> list[Grant]:
        """`take` so many times at once; fewer where the Controller has no more to grant."""
        with self._changed:
            self._num_waiting += count
            taken: list[Grant] = []
            try:
                while len(taken) < count and (grant := self._take()) is not None:
                    taken.append(grant)
                    self._num_waiting -= 1
            except BaseException:
                for grant in taken:
                    grant.num_used -= 1
                raise
            finally:
                self._num_waiting -= count - len(taken)
            return taken

    def _take(self) -> Grant | None:
        while True:
            now = time.monotonic()
            self._grants = [grant for grant in self._grants if grant.ends_at > now]
            free = [grant for grant in self._grants if grant.num_used < grant.num_places]
            if free:
                grant = min(free, key=lambda one: one.num_used)
                grant.num_used += 1
                return grant
            if now - self._refused_at < REFUSED_S:
                return None
            if self._is_asking:
                self._wait()
            else:
                self._ask_unlocked(now)

    def _wait(self) -> None:
        """For the answer that another thread waits for, which is ours too."""
        number = self._num_asks
        if not self._changed.wait_for(lambda: self._num_asks > number, WAIT_S):
            raise NoAnswer(f"the engine granted no places within {WAIT_S:.0f} s")
        if self._num_asks == number + 1 and self._failed is not None:
            raise type(self._failed)(self._failed.message)

    def _ask_unlocked(self, now: float) -> None:
        """Called with the lock held, which is given up meanwhile."""
        self._is_asking, self._failed = True, None
        wanted = min(2 * self._num_waiting + 2, MOST_PLACES)
        granted: Sequence[Sequence[Any]] = ()
        self._changed.release()
        try:
            granted = self._ask(wanted)
        except PierayError as error:
            self._failed = error
            raise
        finally:
            self._changed.acquire()
            self._is_asking = False
            self._num_asks += 1
            if granted:
                self._grants += [Grant(one, now) for one in granted]
            elif self._failed is None:
                self._refused_at = time.monotonic()
            self._changed.notify_all()

    def give_back(self, grant: Grant) -> None:
        """The inferlet that had the place has ended."""
        with self._changed:
            grant.num_used -= 1

    def drop(self, grant: Grant) -> None:
        """Its actor is gone, does not answer, or has refused: use it no more."""
        with self._changed:
            self._grants = [other for other in self._grants if other is not grant]
