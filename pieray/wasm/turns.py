"""In which order guests that can run take their turns: who has computed least comes first.

A guest that waits for the device and computes little in between is ahead of one that spins, whenever it wakes; the
one that spins has what the others leave, and no less than its share.  Those in the background have what nobody
else wants.  Tenants share first, then the guests of each:
a second of computing counts as often as the guest's tenant has guests that want to compute.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar


class Contender(Protocol):
    """A guest, as the order sees it."""

    tenant: str
    served: float
    """Seconds that count against it; the order's alone to change."""

    is_background: bool
    """Whether it has turns only when no other guest wants one.  It is long from its beginning."""

    @property
    def is_long(self) -> bool:
        """Whether it has been computing for so long that it may be interrupted for others."""
        ...


G = TypeVar("G", bound=Contender)


class TurnQueue(Generic[G]):
    """Start-time fair queueing.  Each guest is in it once at most.  Thread-safe.

    A guest that comes from a wait while all workers are busy, one of them with a long turn, interrupts that: `preempt`
    is called, and is to make long turns end soon.  Whose turn is next, the order says.
    """

    def __init__(self, num_workers: int, preempt: Callable[[], None]) -> None:
        self._num_workers = num_workers
        self._preempt = preempt
        self._heap: list[tuple[bool, float, int, G]] = []
        self._running: list[G] = []
        self._wanting: dict[str, int] = {}  # by tenant, guests that wait for a turn or have one
        self._now = 0.0  # what the guest that began last had been served
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._tokens: SimpleQueue[bool] = SimpleQueue()  # True for each guest in the heap, False for each worker to end

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, guest: G) -> None:
        """The guest wants a turn.  Who was away has saved nothing up."""
        with self._lock:
            guest.served = max(guest.served, self._now)
            heapq.heappush(self._heap, (guest.is_background, guest.served, next(self._order), guest))
            self._wanting[guest.tenant] = self._wanting.get(guest.tenant, 0) + 1
            is_urgent = self._interrupts(guest)
        self._tokens.put(True)
        if is_urgent:
            self._preempt()

    def is_urgent(self) -> bool:
        """Whether the guest that is next waits for a long turn."""
        with self._lock:
            return bool(self._heap) and self._interrupts(self._heap[0][3])

    def _interrupts(self, guest: G) -> bool:
        is_full = len(self._running) == self._num_workers
        return is_full and not guest.is_long and any(other.is_long for other in self._running)

    def get(self) -> G | None:
        """Wait for the guest whose turn is next; None: `close` was called.  `release` it afterwards."""
        if not self._tokens.get():
            return None
        with self._lock:
            is_background, served, _, guest = heapq.heappop(self._heap)
            if not is_background:
                self._now = max(self._now, served)
            self._running.append(guest)
            return guest

    def charge(self, guest: G, seconds: float) -> None:
        """The guest has computed, in its turn or through others that worked for it."""
        guest.served += seconds * max(1, self._wanting.get(guest.tenant, 1))

    def release(self, guest: G) -> None:
        """Its turn is over; it may have been `put` again."""
        with self._lock:
            self._running.remove(guest)
            left = self._wanting[guest.tenant] - 1
            if left:
                self._wanting[guest.tenant] = left
            else:
                del self._wanting[guest.tenant]

    def close(self) -> None:
        """End the workers: each gets None, behind the guests that wait."""
        for _ in range(self._num_workers):
            self._tokens.put(False)
