"""Whose work comes next: tenants share one thread by the time that their work has taken."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Work in line, per tenant first come, first served; the tenant that has used least time has its turn.

    Start-time fair queueing (Goyal, Vin, Cheng 1996), charged after the work: `take` a piece, do it, `charge` what it
    took.  `now` is the time used by those who are served: a tenant that comes anew begins there, so that idleness
    earns nothing, and one that comes back while others wait has not lost what it owes.  Not thread-safe.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._lines: dict[str, deque[T]] = {}  # none is empty
        self._used: dict[str, float] = {}  # beyond `now`, or of a tenant in line
        self._num_kept = 64

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def put(self, tenant: str, work: T) -> None:
        """Put work at the end of the tenant's line."""
        line = self._lines.get(tenant)
        if line is None:
            line = self._enter(tenant)
        line.append(work)

    def put_back(self, tenant: str, work: T) -> None:
        """Put work that is not finished back to the front of the tenant's line."""
        line = self._lines.get(tenant)
        if line is None:
            line = self._enter(tenant)
        line.appendleft(work)

    def _enter(self, tenant: str) -> deque[T]:
        line = self._lines[tenant] = deque()
        self._used[tenant] = max(self._used.get(tenant, 0.0), self.now)
        return line

    def take(self) -> tuple[str, T]:
        """The next piece of work, and whose it is; there is one."""
        used = self._used
        tenant = min(self._lines, key=used.__getitem__)
        self.now = max(self.now, used[tenant])
        line = self._lines[tenant]
        work = line.popleft()
        if not line:
            del self._lines[tenant]
        return tenant, work

    def more(self, tenant: str) -> T | None:
        """The tenant's next piece of work, within the same turn; None: there is none."""
        line = self._lines.get(tenant)
        if line is None:
            return None
        work = line.popleft()
        if not line:
            del self._lines[tenant]
        return work

    def charge(self, tenant: str, seconds: float) -> None:
        """The tenant's turn took this long."""
        if not self._lines:  # nobody waits, so nobody is owed anything
            self._used.clear()
            return
        self._used[tenant] = max(self._used.get(tenant, 0.0), self.now) + seconds
        if len(self._used) > self._num_kept:  # who is idle, and owes nothing, is forgotten
            self._used = {t: used for t, used in self._used.items() if t in self._lines or used > self.now}
            self._num_kept = 2 * len(self._used) + 64
