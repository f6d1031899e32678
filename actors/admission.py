"""Launches that wait for a place: who goes first, who is refused, and when it is worth coming again."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

P = TypeVar("P")

OLDEST_EVERY = 8
"""One place in so many goes to who has waited longest, whatever its rank: of n that came before it, whoever waits sees
at most OLDEST_EVERY * (n + 1) places go."""
WINDOW_S = 60.0
"""Of the past, that tells how fast places come free."""
LEAST_RETRY_S, MOST_RETRY_S = 0.1, 600.0
IDLE_RETRY_S = 30.0
"""Said where no place has come free within WINDOW_S: nobody knows better."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a launch is ranked by."""

    tenant: str = ""
    priority: int = 0
    deadline: float = 0.0
    """Unix time; 0: none."""
    is_child: bool = False
    """Among equals children go first: their family holds places already, and ends the sooner."""


@dataclass(eq=False, slots=True)
class Waiting(Generic[P]):
    """A launch in the line."""

    standing: Standing
    number: int
    """In the order of arrival."""
    came: float
    """When it arrived."""
    avoided: list[P] = field(default_factory=list)
    """Places that it is not to have."""
    wake: Callable[[], None] = lambda: None
    """Wakes up who waits, when it is served or displaced, or is the first in line."""
    place: P | None = None
    """Once it is served."""
    is_displaced: bool = False
    """It has lost its place in the line to one that ranks higher, or whose tenant has fewer in it."""
    rank: tuple[int, float, bool, int] = field(init=False)

    def __post_init__(self) -> None:
        s = self.standing
        self.rank = -s.priority, s.deadline or math.inf, not s.is_child, self.number


class Line(Generic[P]):
    """A line of at most `most` launches, by priority, then deadline, then arrival.  Not thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._numbers = itertools.count()
        self._ranked: list[Waiting[P]] = []
        self._by_age: dict[int, Waiting[P]] = {}  # by number, which grows
        self._num_by_tenant: Counter[str] = Counter()
        self._num_served = 0

    def __len__(self) -> int:
        return len(self._ranked)

    def __iter__(self) -> Iterator[Waiting[P]]:
        return iter(tuple(self._ranked))

    def by_tenant(self) -> dict[str, int]:
        return dict(self._num_by_tenant)

    def num_ahead(self, waiting: Waiting[P]) -> int:
        """How many rank before it."""
        return bisect.bisect_left(self._ranked, waiting.rank, key=_rank_of)

    @property
    def first(self) -> Waiting[P] | None:
        """Who ranks first."""
        return self._ranked[0] if self._ranked else None

    def new(self, standing: Standing, came: float = 0.0) -> Waiting[P]:
        """A launch that is not in the line yet."""
        return Waiting(standing, next(self._numbers), came)

    def join(self, waiting: Waiting[P]) -> Waiting[P] | None:
        """Get into line.  When it is full, one of those who are to wait is not to: it is returned, `is_displaced`.

        That is the last of the tenant that has most in line, if it has at least two more than the newcomer's; else
        whoever ranks last, perhaps the newcomer.
        """
        self._add(waiting)
        if len(self._ranked) <= self._most:
            return None
        tenant, most = self._num_by_tenant.most_common(1)[0]
        is_crowd = most - self._num_by_tenant[waiting.standing.tenant] >= 1
        last = next(w for w in reversed(self._ranked) if not is_crowd or w.standing.tenant == tenant)
        self.leave(last)
        last.is_displaced = True
        return last

    def _add(self, waiting: Waiting[P]) -> None:
        bisect.insort(self._ranked, waiting, key=_rank_of)
        self._by_age[waiting.number] = waiting
        self._num_by_tenant[waiting.standing.tenant] += 1

    def leave(self, waiting: Waiting[P]) -> None:
        """It is served, displaced, or has given up.  Idempotent."""
        if self._by_age.pop(waiting.number, None) is None:
            return
        del self._ranked[self.num_ahead(waiting)]
        tenant = waiting.standing.tenant
        self._num_by_tenant[tenant] -= 1
        if not self._num_by_tenant[tenant]:
            del self._num_by_tenant[tenant]

    def serve(self, find: Callable[[Waiting[P]], P | None]) -> list[Waiting[P]]:
        """Give places out for as long as there are some; who has got one, and is in line no more.

        `find` takes a place for a launch; None: there is none for it, and if it avoids none, none for anybody.
        """
        served: list[Waiting[P]] = []
        while (waiting := self._next(find)) is not None:
            self.leave(waiting)
            self._num_served += 1
            served.append(waiting)
        return served

    def _next(self, find: Callable[[Waiting[P]], P | None]) -> Waiting[P] | None:
        for waiting in self._in_turn():
            if (place := find(waiting)) is not None:
                waiting.place = place
                return waiting
            if not waiting.avoided:
                return None
        return None

    def _in_turn(self) -> Iterator[Waiting[P]]:
        if self._ranked and self._num_served % OLDEST_EVERY == OLDEST_EVERY - 1:
            yield next(iter(self._by_age.values()))
        yield from tuple(self._ranked)

    def check(self) -> None:
        """Raise AssertionError unless the books agree."""
        assert [w.rank for w in self._ranked] == sorted(w.rank for w in self._by_age.values())
        assert list(self._by_age) == sorted(self._by_age)
        assert Counter(w.standing.tenant for w in self._ranked) == self._num_by_tenant
        assert len(self._ranked) <= self._most


def _rank_of(waiting: Waiting[P]) -> tuple[int, float, bool, int]:
    return waiting.rank


class FreeRate:
    """How fast places come free, as it has gone lately.  Times are seconds of one clock."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._noted: deque[tuple[float, int]] = deque()
        self._total = 0

    def note(self, num_places: int, now: float) -> None:
        """So many have come free."""
        if num_places > 0:
            self._noted.append((now, num_places))
            self._total += num_places
        self._forget(now)

    def retry_after_s(self, num_wanted: int, now: float) -> float:
        """In how many seconds so many places have come free, if it goes on as in the last WINDOW_S."""
        self._forget(now)
        if not self._total:
            return IDLE_RETRY_S
        rate = self._total / min(WINDOW_S, max(now - self._since, 1.0))
        return round(min(max(num_wanted / rate, LEAST_RETRY_S), MOST_RETRY_S), 1)

    def _forget(self, now: float) -> None:
        while self._noted and self._noted[0][0] < now - WINDOW_S:
            self._total -= self._noted.popleft()[1]
