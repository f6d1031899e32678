"""In which order guests that can run take their turns.

From first to last: guests of tenants that have not had more than their share of the computing, then the higher
priority, then those of the tenant that has computed least, and of these who has computed least.  A guest that waits
for the device and computes little in between is so ahead of one that spins, whenever it wakes; the one that spins has
what the others leave.  Nothing starves: each `OLDEST_FIRST_EVERY_S` one turn is that of whoever has waited longest.
Guests in the background have what nobody else wants.

Where pages are short, guests that have had no turn yet are held back, but for one of each tenant each `BEGIN_EVERY_S`:
they could only wait for pages, with memory and a slot of their own, while who holds pages is to come to an end.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, NamedTuple, Protocol, TypeVar

OLDEST_FIRST_EVERY_S = 0.5
"""Who has waited so long has the next turn, one of them each time."""
BEGIN_EVERY_S = 0.25
"""One guest of a tenant that is held back begins each time: what others wait for may be what it is to do."""
SHARE_S = 0.05
"""A tenant is over its share when it has had so much more than the one, of those that want turns, that had least."""


class Contender(Protocol):
    """A guest, as the order sees it."""

    tenant: str
    priority: int
    """The higher goes first."""

    served: float
    """Seconds that count against it; the order's alone to change."""

    is_background: bool
    """Whether it has turns only when no other guest wants one.  It is long from its beginning."""

    is_starting: bool
    """Whether it has had no turn yet."""

    @property
    def error(self) -> object | None:
        """Why it is to end, or None: one that is to end is not held back."""
        ...

    @property
    def is_long(self) -> bool:
        """Whether it has been computing for so long that it may be interrupted for others."""
        ...


G = TypeVar("G", bound=Contender)


class _Rank(NamedTuple):
    """What comes before all that is counted in seconds.  The lesser goes first."""

    is_background: bool
    is_over_share: bool
    priority: int  # less one for each, so that the higher is the lesser


class _Place(NamedTuple):
    """A guest's place among those of its tenant.  The lesser goes first."""

    is_background: bool
    priority: int  # as in a rank
    served: float
    number: int  # in the order of coming: no two are equal


class _Wish(Generic[G]):
    """Of a guest for a turn; `guest` is None once it has it."""

    __slots__ = ("guest", "place", "since")

    def __init__(self, place: _Place, guest: G, since: float) -> None:
        self.place = place
        self.guest: G | None = guest
        self.since = since

    def __lt__(self, other: _Wish[G]) -> bool:
        return self.place < other.place


class _Tenant(Generic[G]):
    """What its guests have had, and which of them want a turn."""

    __slots__ = ("had", "now", "num_wanting", "wishes")

    def __init__(self) -> None:
        self.had = 0.0  # seconds over its weight
        self.now = 0.0  # what the guest of it that began last had been served
        self.num_wanting = 0  # guests that wait for a turn or have one
        self.wishes: list[_Wish[G]] = []  # a heap


class TurnQueue(Generic[G]):
    """Start-time fair queueing, of tenants and of the guests of each.  Each guest is in it once at most.  Thread-safe.

    A guest that comes from a wait while all workers are busy, one of them with a long turn of a guest that goes before
    it in nothing but time, interrupts that: `preempt` is called, and is to make long turns end soon.  Whose turn is
    next, the order says.  `weight_of` gives a tenant's weight in shares of the computing, `is_short` whether many wait
    for pages of those who would get some before a guest.  `on_held` is called, by `get`, when one is held back: from
    then on `let_in` is to be called now and then, while any is.
    """

    def __init__(
        self,
        num_workers: int,
        preempt: Callable[[], None],
        *,
        weight_of: Callable[[str], float] = lambda _: 1.0,
        is_short: Callable[[G], bool] = lambda _: False,
        on_held: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_workers = num_workers
        self._preempt = preempt
        self._weight_of = weight_of
        self._is_short = is_short
        self._on_held = on_held
        self._clock = clock
        self._tenants: dict[str, _Tenant[G]] = {}
        self._wanting: dict[str, _Tenant[G]] = {}
        self._waiting: dict[G, _Wish[G]] = {}  # the oldest first
        self._held: dict[G, float] = {}  # back; since when they wait
        self._began: dict[str, tuple[float, int]] = {}  # of a tenant's: when the last one began all the same; how many
        self._running: list[G] = []
        self._now = 0.0  # what the tenant that began last had had
        self._was_patient_at = -math.inf
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # True for each guest that waits, False for each worker to end

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def num_held(self) -> int:
        """Guests that are held back."""
        return len(self._held)

    def put(self, guest: G) -> None:
        """The guest wants a turn.  Who was away has saved nothing up, nor has its tenant."""
        with self._lock:
            self._add(guest, self._clock())
            is_urgent = self._interrupts(guest)
        self._tokens.put(True)
        if is_urgent:
            self._preempt()

    def let_in(self) -> None:
        """Guests that need not be held back any longer wait for their turns."""
        with self._lock:
            now = self._clock()
            short: dict[tuple[str, int], bool] = {}
            held: dict[str, list[G]] = {}  # by tenant
            fit = []
            for guest in self._held:
                like = guest.tenant, guest.priority
                if guest.error is None and like not in short:
                    short[like] = self._is_short(guest)
                if guest.error is not None or not short[like]:
                    fit.append(guest)
                else:
                    held.setdefault(guest.tenant, []).append(guest)
            for tenant, guests in held.items():
                began_at, number = self._began.get(tenant, (-math.inf, 0))
                if now - began_at >= BEGIN_EVERY_S:  # by turns who goes first, and who has waited longest
                    first = min(guests, key=lambda one: self._held[one] if number % 2 else -one.priority)
                    first.is_starting = False  # as good as begun
                    self._began[tenant] = now, number + 1
                    fit.append(first)
            for tenant in self._began.keys() - held.keys():
                del self._began[tenant]
            for guest in fit:
                self._add(guest, self._held.pop(guest))
        for _ in fit:
            self._tokens.put(True)

    def is_urgent(self) -> bool:
        """Whether the guest that is next waits for a long turn."""
        with self._lock:
            return bool(self._waiting) and self._interrupts(self._first())

    def get(self) -> G | None:
        """Wait for the guest whose turn is next; None: `close` was called.  `release` it afterwards."""
        while self._tokens.get():
            with self._lock:
                guest = self._longest_waiting() or self._first()
                wish = self._waiting.pop(guest)
                wish.guest = None
                if not self._is_held_back(guest):
                    if not guest.is_background:
                        tenant = self._tenants[guest.tenant]
                        self._now, tenant.now = max(self._now, tenant.had), max(tenant.now, guest.served)
                    self._running.append(guest)
                    return guest
                self._held[guest] = wish.since
                self._wants_none(guest)
            self._on_held()
        return None

    def charge(self, guest: G, seconds: float) -> None:
        """The guest has computed, in its turn or through others that worked for it."""
        with self._lock:
            guest.served += seconds
            if not guest.is_background and (tenant := self._tenants.get(guest.tenant)) is not None:
                tenant.had += seconds / self._weight_of(guest.tenant)

    def release(self, guest: G) -> None:
        """Its turn is over; it may have been `put` again."""
        with self._lock:
            self._running.remove(guest)
            self._wants_none(guest)

    def close(self) -> None:
        """End the workers: each gets None, behind the guests that wait."""
        for _ in range(self._num_workers):
            self._tokens.put(False)

    # --- inside, with the lock held ----------------------------------------------------------------

    def _add(self, guest: G, since: float) -> None:
        tenant = self._tenants.get(guest.tenant)
        if tenant is None:
            tenant = self._tenants[guest.tenant] = _Tenant()
        if not tenant.num_wanting:
            tenant.had = max(tenant.had, self._now)
            self._wanting[guest.tenant] = tenant
        tenant.num_wanting += 1
        guest.served = max(guest.served, tenant.now)
        place = _Place(guest.is_background, -guest.priority, guest.served, next(self._numbers))
        self._waiting[guest] = wish = _Wish(place, guest, since)
        heapq.heappush(tenant.wishes, wish)

    def _wants_none(self, guest: G) -> None:
        """It waits for no turn any more, nor has one."""
        tenant = self._tenants[guest.tenant]
        tenant.num_wanting -= 1
        if not tenant.num_wanting:
            del self._wanting[guest.tenant]
            for name in [n for n, t in self._tenants.items() if not t.num_wanting and t.had <= self._now]:
                del self._tenants[name]  # it would come to `_now` anyway

    def _is_held_back(self, guest: G) -> bool:
        return guest.is_starting and not guest.is_background and guest.error is None and self._is_short(guest)

    def _interrupts(self, guest: G) -> bool:
        if len(self._running) < self._num_workers or guest.is_long:
            return False
        long = [other for other in self._running if other.is_long]
        if not long:
            return False
        over = self._over_share()
        rank = _rank(guest, over)
        return any(rank <= _rank(other, over) for other in long)

    def _first(self) -> G:
        """The guest that is next, before any turn of who has waited longest; there must be one."""
        over = self._over_share()
        return min(
            (_rank(guest, over), tenant.had, wish.place, guest)
            for tenant in self._wanting.values()
            if (wish := _head(tenant.wishes)) is not None and (guest := wish.guest) is not None
        )[3]

    def _longest_waiting(self) -> G | None:
        """Who has waited so long that it has the next turn."""
        now = self._clock()
        if now - self._was_patient_at < OLDEST_FIRST_EVERY_S:
            return None
        for guest, wish in self._waiting.items():
            if now - wish.since < OLDEST_FIRST_EVERY_S:
                return None
            if not guest.is_background:
                self._was_patient_at = now
                return guest
        return None

    def _over_share(self) -> frozenset[str]:
        """Tenants that have had more than their share, among those that want turns."""
        if len(self._wanting) < 2:
            return frozenset()
        most = min(tenant.had for tenant in self._wanting.values()) + SHARE_S
        return frozenset(name for name, tenant in self._wanting.items() if tenant.had > most)


def _head(heap: list[_Wish[G]]) -> _Wish[G] | None:
    while heap and heap[0].guest is None:
        heapq.heappop(heap)
    return heap[0] if heap else None


def _rank(guest: Contender, over: frozenset[str]) -> _Rank:
    return _Rank(guest.is_background, guest.tenant in over, -guest.priority)
