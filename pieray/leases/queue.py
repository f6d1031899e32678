"""The queue of lease requests that wait for pages, served by rank (`pieray.leases.rank`), with deadlines.

Who goes first is served first, and gets pages from those who rank lower if it must (`pieray.leases.relief`).  Pages
that are too few for it go to the next in the meantime, but to nobody while others give up theirs for it; and once it
has waited for `BACKFILL_S`, only to those who have pages already, and have to come to an end to give them back.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pieray.errors import OutOfPages, PierayError, QuotaExceeded
from pieray.leases.ledger import Holder, Lease, PageLedger
from pieray.leases.rank import Rank, Ranks

BACKFILL_S = 0.5


@dataclass(frozen=True, slots=True)
class Granted:
    """A waiting request has its pages."""

    holder: Holder
    ticket: int
    lease: Lease


@dataclass(frozen=True, slots=True)
class Refused:
    """A waiting request has failed."""

    holder: Holder
    ticket: int
    error: PierayError


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in line.  Times are seconds, monotonic."""

    holder: Holder
    ticket: int
    count: int
    since: float
    deadline: float
    hashes: Sequence[bytes]
    num_more: int = 0


class LeaseQueue:
    """Lease requests over a ledger.  After anything came free, call `retry`; at `next_deadline`, `expire`.

    `quota_of` gives the pages that a tenant's programs may hold together; 0: as many as there are.
    """

    def __init__(self, ledger: PageLedger, ranks: Ranks | None = None, quota_of: Callable[[str], int] = lambda _: 0):
        self.ledger = ledger
        self.ranks = ranks if ranks is not None else Ranks(ledger)
        self._quota_of = quota_of
        self._line: OrderedDict[int, Waiting] = OrderedDict()  # by arrival number
        self._deadlines: list[tuple[float, int]] = []  # heap; entries of requests that left are skipped
        self._next = 0
        self._num_asked = 0  # pages that the line waits for
        self._asked: dict[Holder, int] = {}
        self.kept_for: Holder | None = None
        """Others give up pages for this one: nobody who ranks lower is given any."""

    def __len__(self) -> int:
        return len(self._line)

    @property
    def shortage(self) -> int:
        """Pages that must come free before the whole line is served; 0 with nobody waiting."""
        return max(0, self._num_asked - self.ledger.num_available)

    def num_waiting(self) -> dict[str, int]:
        """Requests in line by tenant."""
        found: dict[str, int] = {}
        for waiting in self._line.values():
            tenant = self.ranks.tenant_of(waiting.holder)
            found[tenant] = found.get(tenant, 0) + 1
        return found

    def request(
        self,
        holder: Holder,
        ticket: int,
        count: int,
        now: float,
        deadline_s: float,
        hashes: Sequence[bytes] = (),
        num_more: int = 0,
    ) -> Lease | None:
        """`count` pages at once, see `PageLedger.take`, or None: the request waits in line for up to `deadline_s`
        seconds.  With hashes `count` may be 0: such a request never waits.

        `num_more` pages are given with them, as far as there are any: to nobody while one that ranks higher lacks some.
        So who goes first has what it will want before those behind it begin with what they would have to give up.

        Raises at once what waiting cannot mend: as `PageLedger.admit`, where pages that the holder already waits for
        count towards its limit, and QuotaExceeded for more than its tenant may hold.
        """
        asked = self._asked.get(holder, 0)
        self.ledger.admit(holder, count, asked, least=0 if hashes else 1)
        self.ranks.know(holder)
        self._check_quota(holder, count, asked)
        is_first = not count or (not self._line and self._has_quota(holder, count))
        if is_first and (lease := self.ledger.take(holder, count, hashes)) is not None:
            return self._with_more(holder, lease, num_more)
        number, self._next = self._next, self._next + 1
        self._line[number] = Waiting(holder, ticket, count, now, now + deadline_s, hashes, num_more)
        heapq.heappush(self._deadlines, (now + deadline_s, number))
        self._num_asked += count
        self._asked[holder] = asked + count
        return None

    def retry(self, now: float) -> list[Granted]:
        """Serve the line, first who ranks first, as far as pages reach.  Requests past their deadline are skipped."""
        granted: list[Granted] = []
        if not self._line or not self.ledger.num_available:
            return granted
        is_kept = is_for_holders = is_behind = False
        for _, number in sorted(self._ranked(now)):
            waiting = self._line[number]
            if waiting.count and (is_kept or (is_for_holders and not self.ledger.num_pages_of(waiting.holder))):
                continue
            if not self._has_quota(waiting.holder, waiting.count):
                continue
            lease = self.ledger.take(waiting.holder, waiting.count, waiting.hashes)
            if lease is None:
                is_kept = is_kept or waiting.holder == self.kept_for
                is_for_holders = is_for_holders or now - waiting.since >= BACKFILL_S
                is_behind = True
                continue
            self._remove(number)
            if not is_behind:
                lease = self._with_more(waiting.holder, lease, waiting.num_more)
            self.ranks.granted(waiting.holder, now, now - waiting.since)
            granted.append(Granted(waiting.holder, waiting.ticket, lease))
            if not self.ledger.num_available:
                break
        return granted

    def head(self, now: float) -> tuple[Rank, Waiting] | None:
        """The request that goes first, among those that have not passed their deadline; and its rank."""
        first = min(self._ranked(now), default=None)
        return None if first is None else (first[0], self._line[first[1]])

    def waits(self) -> dict[Holder, float]:
        """Who waits, and since when."""
        found: dict[Holder, float] = {}
        for waiting in self._line.values():
            found.setdefault(waiting.holder, waiting.since)
        return found

    def is_over_quota(self, waiting: Waiting) -> bool:
        """Whether it waits for its own tenant to hold less."""
        return not self._has_quota(waiting.holder, waiting.count)

    def _ranked(self, now: float) -> list[tuple[Rank, int]]:
        """Requests that have not passed their deadline, by number, with their ranks."""
        over = self.ranks.over_share((waiting.holder for waiting in self._line.values()), now)
        rank = self.ranks.rank
        return [(rank(w.holder, now, over, now - w.since), n) for n, w in self._line.items() if w.deadline > now]

    def expire(self, now: float) -> list[Refused]:
        """Requests whose deadline has come, with the error that each fails with (out-of-pages)."""
        refused = []
        while (at := self.next_deadline()) is not None and at <= now:
            number = heapq.heappop(self._deadlines)[1]
            waiting = self._remove(number)
            error = OutOfPages(
                f"page_wait_s: the limit is {waiting.deadline - waiting.since:.3g} s; {waiting.count} pages were asked "
                f"for, and {self.ledger.num_available} of the pool's {self.ledger.total} (settings model.num_pages, "
                "model.kv_memory_bytes) are free: free pages elsewhere or ask for fewer"
            )
            refused.append(Refused(waiting.holder, waiting.ticket, error))
        return refused

    def next_deadline(self) -> float | None:
        """When `expire` has work, in seconds of the caller's clock; None with nobody waiting."""
        while self._deadlines and self._deadlines[0][1] not in self._line:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def cancel(self, holder: Holder) -> list[int]:
        """Take the holder's requests out of the line; returns their tickets, oldest first."""
        if holder not in self._asked:
            return []
        return self._cancel([n for n, w in self._line.items() if w.holder == holder])

    def drop_peer(self, peer_id: str) -> list[int]:
        """Take all requests of a dead peer out of the line; returns their tickets, oldest first."""
        return self._cancel([n for n, w in self._line.items() if w.holder.peer_id == peer_id])

    def _with_more(self, holder: Holder, lease: Lease, num_more: int) -> Lease:
        """The lease with up to so many pages more."""
        num_more = min(num_more, self.ledger.num_available)
        if num_more <= 0 or not self._has_quota(holder, num_more):
            return lease
        more = self.ledger.take(holder, num_more)
        return lease if more is None else Lease(lease.pages + more.pages, lease.num_found)

    def _check_quota(self, holder: Holder, count: int, asked: int) -> None:
        tenant = self.ranks.tenant_of(holder)
        quota, held = self._quota_of(tenant), self.ledger.num_pages_of(holder)
        if quota and held + asked + count > quota:
            raise QuotaExceeded(
                f"tenants.{tenant}.pages: the limit is {quota}; this inferlet holds {held}, waits for "
                f"{asked} and asked for {count} more"
            )

    def _has_quota(self, holder: Holder, count: int) -> bool:
        tenant = self.ranks.tenant_of(holder)
        quota = self._quota_of(tenant)
        return not quota or self.ranks.held_by_tenant().get(tenant, 0) + count <= quota

    def _cancel(self, numbers: list[int]) -> list[int]:
        return [self._remove(number).ticket for number in numbers]

    def _remove(self, number: int) -> Waiting:
        waiting = self._line.pop(number)
        self._num_asked -= waiting.count
        self._asked[waiting.holder] -= waiting.count
        if not self._asked[waiting.holder]:
            del self._asked[waiting.holder]
        if self.kept_for == waiting.holder:
            self.kept_for = None
        return waiting
