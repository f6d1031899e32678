"""What a supervisor remembers: when it restarted actors, and where inferlets were placed.  Thread-safe."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque

from pieray.actors.pool import Member
from pieray.errors import EngineError

MAX_RESTARTS, RESTART_WINDOW_S = 5, 60.0
KEEP_LOCATIONS = 10_000


class Restarts:
    """Restarts of an engine's actors, of which there may be MAX_RESTARTS in RESTART_WINDOW_S."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._lock = threading.Lock()

    @property
    def num_recent(self) -> int:
        """Those of the last RESTART_WINDOW_S, as of the last of them."""
        return len(self._times)

    def spend(self, role: str) -> None:
        """One more; raises EngineError past the limit."""
        now = time.monotonic()
        with self._lock:
            while self._times and self._times[0] < now - RESTART_WINDOW_S:
                self._times.popleft()
            if len(self._times) >= MAX_RESTARTS:
                raise EngineError(f"{MAX_RESTARTS} restarts within {RESTART_WINDOW_S:.0f} s are the limit; "
                                  f"{role} would be one more")  # fmt: skip
            self._times.append(now)


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

    def forget(self, host: Member) -> None:
        """The actor is gone."""
        with self._lock:
            for instance_id in [i for i, (_, where) in self._found.items() if where is host]:
                del self._found[instance_id]
