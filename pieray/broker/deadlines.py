"""Until when callers wait."""

from __future__ import annotations

import heapq
import itertools

from pieray.broker.buffer import Caller


class Deadlines:
    """A heap of deadlines.  Those that have ended leave the heap when they are half of it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Caller]] = []
        self._live: dict[Caller, float] = {}
        self._order = itertools.count()

    def add(self, caller: Caller, when: float) -> None:
        self._live[caller] = when
        heapq.heappush(self._heap, (when, next(self._order), caller))

    def remove(self, caller: Caller) -> None:
        self._live.pop(caller, None)
        if len(self._heap) > 2 * len(self._live) + 16:
            self._heap = [entry for entry in self._heap if self._live.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """The earliest one."""
        while self._heap and self._live.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expired(self, now: float, most: int) -> list[Caller]:
        """Take out up to `most` of those whose time is over, in order."""
        found: list[Caller] = []
        while len(found) < most and (when := self.next()) is not None and when <= now:
            caller = heapq.heappop(self._heap)[2]
            del self._live[caller]
            found.append(caller)
        return found
