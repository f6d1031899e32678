"""What a supervisor remembers: when actors died, and where inferlets were placed.  Thread-safe."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque

from pieray.actors.members import Member

FREE_RESTARTS, RESTART_WINDOW_S = 5, 60.0
MAX_DELAY_S = 30.0
KEEP_LOCATIONS = 10_000


class Restarts:
    """Deaths of one kind of actor, as OTP counts them: over a window.

    The first FREE_RESTARTS within RESTART_WINDOW_S are mended at once; each one more doubles the wait before the next
    attempt, to MAX_DELAY_S at most.  Nothing is given up: what is left of the window later is what counts.
    """

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self.num_ever = 0
        self._lock = threading.Lock()

    def note(self) -> None:
        """One more death, or attempt that failed."""
        with self._lock:
            self._times.append(time.monotonic())
            self.num_ever += 1

    @property
    def num_recent(self) -> int:
        """Of the last RESTART_WINDOW_S."""
        with self._lock:
            while self._times and self._times[0] < time.monotonic() - RESTART_WINDOW_S:
                self._times.popleft()
            return len(self._times)

    @property
    def delay_s(self) -> float:
        """How long the next attempt waits, from now."""
        excess = self.num_recent - FREE_RESTARTS
        return min(2.0 ** (excess - 1), MAX_DELAY_S) if excess > 0 else 0.0


class Locations:
    """Name and actor of the inferlets launched last, KEEP_LOCATIONS at most."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[str, Member]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, instance_id: str, name: str, host: Member) -> None:
        with self._lock:
            self._found[instance_id] = (name, host)
            while len(self._found) > KEEP_LOCATIONS:
                self._found.popitem(last=False)

    def find(self, instance_id: str) -> tuple[str, Member] | None:
        return self._found.get(instance_id)

    def on(self, host: Member) -> list[tuple[str, str]]:
        """Ids and names of the inferlets launched on an actor, of those that have ended too."""
        with self._lock:
            return [(i, name) for i, (name, where) in self._found.items() if where is host]

    def forget(self, host: Member) -> None:
        """The actor is gone."""
        with self._lock:
            for instance_id in [i for i, (_, where) in self._found.items() if where is host]:
                del self._found[instance_id]
