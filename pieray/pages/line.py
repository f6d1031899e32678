"""The line of lease requests that wait for pages: strict first come, first served, with deadlines.

Nobody overtakes: a small request behind a large one waits, so that the large one cannot starve.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from pieray.errors import OutOfPages, PierayError
from pieray.pages.ledger import Holder, Lease, PageLedger


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
class _Waiting:
    holder: Holder
    ticket: int
    count: int
    since: float  # seconds, monotonic
    deadline: float
    hashes: Sequence[bytes]


class LeaseLine:
    """Lease requests over a ledger.  After anything came free, call `retry`; at `next_deadline`, `expire`."""

    def __init__(self, ledger: PageLedger) -> None:
        self.ledger = ledger
        self._line: OrderedDict[int, _Waiting] = OrderedDict()  # by arrival number
        self._deadlines: list[tuple[float, int]] = []  # heap; entries of requests that left are skipped
        self._next = 0
        self._num_asked = 0  # pages that the line waits for
        self._asked: dict[Holder, int] = {}

    def __len__(self) -> int:
        return len(self._line)

    @property
    def shortage(self) -> int:
        """Pages that must come free before the whole line is served; 0 with nobody waiting."""
        return max(0, self._num_asked - self.ledger.num_available)

    def request(
        self, holder: Holder, ticket: int, count: int, now: float, deadline_s: float, hashes: Sequence[bytes] = ()
    ) -> Lease | None:
        """`count` pages at once, see `PageLedger.take`, or None: the request waits in line for up to `deadline_s`
        seconds.  With hashes `count` may be 0: such a request never waits.

        Raises at once what waiting cannot mend, as `PageLedger.admit`: pages that the holder already waits for
        count towards its limit.
        """
        self.ledger.admit(holder, count, self._asked.get(holder, 0), least=0 if hashes else 1)
        if (not self._line or not count) and (lease := self.ledger.take(holder, count, hashes)) is not None:
            return lease
        self._line[self._next] = _Waiting(holder, ticket, count, now, now + deadline_s, hashes)
        heapq.heappush(self._deadlines, (now + deadline_s, self._next))
        self._next += 1
        self._num_asked += count
        self._asked[holder] = self._asked.get(holder, 0) + count
        return None

    def retry(self, now: float) -> list[Granted]:
        """Serve the line from its head as far as pages reach.  Requests past their deadline are skipped."""
        granted = []
        for number, waiting in list(self._line.items()) if self.ledger.num_available else ():
            if waiting.deadline <= now:
                continue
            lease = self.ledger.take(waiting.holder, waiting.count, waiting.hashes)
            if lease is None:
                break
            self._remove(number)
            granted.append(Granted(waiting.holder, waiting.ticket, lease))
        return granted

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

    def _cancel(self, numbers: list[int]) -> list[int]:
        return [self._remove(number).ticket for number in numbers]

    def _remove(self, number: int) -> _Waiting:
        waiting = self._line.pop(number)
        self._num_asked -= waiting.count
        self._asked[waiting.holder] -= waiting.count
        if not self._asked[waiting.holder]:
            del self._asked[waiting.holder]
        return waiting
