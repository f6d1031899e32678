"""Relief: which programs give up their pages when whoever goes first in the line lacks some.

Pages that nobody uses have gone before: the cached ones, exports that are not pinned, what was leased ahead of need.
Then, whole programs at a time: those that are idle (they wait for a client, a child, a tool, a timer), whatever their
rank; then those that rank lower, the lowest first (for a program without pages, at first not those that are only
younger).  Nobody gives up anything unless all together it is enough, so that whoever ranks highest always gets on, and
nothing is given up in vain.

    line    | C wants 6 |            pool of 16
    holds   A 8 (idle)  B 6  D 2     rank C < B < D: A gives up 8, and B and D go on

A program that has given up its pages keeps what they held (`pieray.host.device.swap`) and waits in line like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from pieray.leases.ledger import Holder, PageLedger
from pieray.leases.queue import LeaseQueue, Waiting
from pieray.leases.rank import Rank

AGAIN_S = 1.0
"""A program that could not give up all that it has is not asked again before."""
NEWCOMER_WAIT_S = 1.0
"""A program without pages waits for so long before one gives up its own that only is younger: some come to their end
in the meantime, and what has begun gets on."""
ANSWER_S = 5.0
"""Pages that were asked for are counted on for so long."""


class Relief:
    """Times are seconds, monotonic."""

    def __init__(self, ledger: PageLedger, line: LeaseQueue) -> None:
        self._ledger = ledger
        self._line = line
        self._asked: dict[Holder, float] = {}  # to give up their pages; when they count on no more
        self._rests: dict[Holder, float] = {}  # not to be asked before
        self.num_idle = 0  # times that an idle program was asked, ever
        self.num_running = 0  # the same of running ones

    @property
    def num_asked(self) -> int:
        """Programs that are giving up their pages."""
        return len(self._asked)

    def choose(self, now: float, idle: Collection[Holder]) -> list[Holder]:
        """Programs to be asked now; each answers, and `answered` is called."""
        self._line.kept_for = None
        head = self._line.head(now)
        self._asked = {holder: until for holder, until in self._asked.items() if until > now}
        self._rests = {holder: until for holder, until in self._rests.items() if until > now}
        if head is None:
            return []
        rank, waiting = head
        chosen = self._choose(rank, waiting, now, idle)
        if chosen or self._asked:
            self._line.kept_for = waiting.holder
        for holder in chosen:
            self._asked[holder] = now + ANSWER_S
            if holder in idle:
                self.num_idle += 1
            else:
                self.num_running += 1
        return chosen

    def left_to_others(self) -> dict[Holder, list[int]]:
        """Of each program that is giving up its pages, those that others have who are not, or who come behind it: one
        of those who have a page is to keep what it holds."""
        count = _Count(self._ledger)
        return {holder: count.left_by(holder) for holder in self._asked}

    def answered(self, holder: Holder, now: float, *, is_whole: bool) -> None:
        """The program has given up what it could; whether that was all."""
        self._asked.pop(holder, None)
        if not is_whole:
            self._rests[holder] = now + AGAIN_S

    def close(self, holder: Holder) -> None:
        """The program has ended."""
        self._asked.pop(holder, None)
        self._rests.pop(holder, None)

    def drop_peer(self, peer_id: str) -> None:
        for holder in [h for h in (*self._asked, *self._rests) if h.peer_id == peer_id]:
            self.close(holder)

    # --- inside --------------------------------------------------------------------------------

    def _choose(self, rank: Rank, waiting: Waiting, now: float, idle: Collection[Holder]) -> list[Holder]:
        ledger, ranks = self._ledger, self._line.ranks
        tenant = None
        wanted = waiting.count - ledger.num_available
        if self._line.is_over_quota(waiting):
            tenant, wanted = ranks.tenant_of(waiting.holder), waiting.count
        count = _Count(ledger)
        for holder in self._asked:
            wanted -= count.given_up_by(holder)
        if wanted <= 0:
            return []
        is_patient = not ledger.num_pages_of(waiting.holder) and now - waiting.since < NEWCOMER_WAIT_S
        since, dead = self._line.waits(), set(ledger.dead_peers)
        over = ranks.over_share(since, now)
        found: list[tuple[bool, Rank, Holder]] = []
        for holder in ledger.held():
            if holder == waiting.holder or holder in self._asked or holder in self._rests or holder.peer_id in dead:
                continue
            if tenant is not None and ranks.tenant_of(holder) != tenant:
                continue
            its = ranks.rank(holder, now, over, now - since.get(holder, now))
            if holder in idle or (its.standing > rank.standing if is_patient else its > rank):
                found.append((holder in idle, its, holder))
        chosen = []
        for _, _, holder in sorted(found, reverse=True):  # idle ones first, then the lowest rank
            chosen.append(holder)
            wanted -= count.given_up_by(holder)
            if wanted <= 0:
                return [holder for holder in chosen if count.has_part(holder)]
        return []


class _Count:
    """Pages that come to be available as one program after the other gives up its own."""

    def __init__(self, ledger: PageLedger) -> None:
        self._ledger = ledger
        self._less: Counter[int] = Counter()  # references that are gone by then

    def given_up_by(self, holder: Holder) -> int:
        num = 0
        for page, count, references in self._ledger.references(holder):
            self._less[page] += count
            num += self._less[page] == references
        return num

    def has_part(self, holder: Holder) -> bool:
        """Whether one of the pages that come to be available is its own: without it there would be fewer."""
        return any(self._less[page] == references for page, _, references in self._ledger.references(holder))

    def left_by(self, holder: Holder) -> list[int]:
        """Pages that others still have when the program has given up its own, after those before it."""
        pages = self._ledger.references(holder)
        for page, count, _ in pages:
            self._less[page] += count
        return [page for page, _, references in pages if self._less[page] < references]
