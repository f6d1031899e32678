"""Who goes first where pages are short, and who gives them up first: one order of programs for both.

From first to last: programs of a tenant that has had no more than its share, then the higher priority, then the earlier
deadline, then who has had less service, then the older family.  Nothing starves: a request that waits gains a priority
with every `AGING_S`, and what it has gained stays with the program for `KEEP_S` once it has its pages, so that it gets
on before somebody takes them.

What a tenant has had is measured in pages times seconds over its weight, and not by what it holds just now: who gives
up pages must not come to be the first to get them back.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pieray.leases.ledger import Holder, PageLedger
from pieray.urgency import SERVICE_TOKENS

AGING_S = 30.0
"""A request that has waited so long goes before one of the next higher priority that has just come."""
KEEP_S = 2.0
SHARE_S = 1.0
"""A tenant is over its share when it has had the whole pool for so long more than the one that has had least."""


class Rank(NamedTuple):
    """The lesser goes first."""

    is_over_share: bool
    priority: int  # less one for each, so that the higher is the lesser
    deadline: float
    service: int
    born: float
    number: int  # of the program: no two are equal

    @property
    def standing(self) -> tuple[object, ...]:
        """All but the age."""
        return self[:4]


@dataclass(slots=True)
class Facts:
    """What a program is ranked by.  Times are seconds since the epoch."""

    tenant: str = ""
    priority: int = 0
    deadline: float = math.inf
    born: float = 0.0  # when the first of its family was launched
    number: int = 0
    family: str = ""  # instance id of its root, in its tenant; "": it has none but itself
    num_tokens: int = 0  # that it has had computed, as far as known
    gained: int = 0  # priority, by waiting
    kept_until: float = 0.0  # what it has gained; of the clock of waits


@dataclass(slots=True)
class _Family:
    """Programs whose service is counted together, for as long as one of them lives."""

    num_tokens: int = 0
    num_programs: int = 0


class Ranks:
    """Facts of holders, and their order.  `weight_of` gives a tenant's weight in shares of the pool."""

    def __init__(self, ledger: PageLedger, weight_of: Callable[[str], float] = lambda _: 1.0) -> None:
        self._ledger = ledger
        self._weight_of = weight_of
        self._facts: dict[Holder, Facts] = {}
        self._families: dict[tuple[str, str], _Family] = {}  # by tenant and root
        self._num_of: Counter[str] = Counter()  # programs by tenant
        self._unknown = Facts()
        self._num_opened = 0
        self._had: dict[str, float] = {}  # by tenant: pages times seconds, over its weight
        self._had_at = -math.inf  # up to when

    @property
    def num_opened(self) -> int:
        """Programs that have begun, ever."""
        return self._num_opened

    @property
    def num_programs(self) -> int:
        """That have begun and not ended."""
        return len(self._facts)

    def open(self, holder: Holder, facts: Facts) -> None:
        """A program has begun."""
        self._num_opened += 1
        facts.number = self._num_opened
        self.close(holder)
        self._facts[holder] = facts
        self._num_of[facts.tenant] += 1
        if facts.family:
            self._families.setdefault((facts.tenant, facts.family), _Family()).num_programs += 1

    def know(self, holder: Holder) -> None:
        """A program asks for pages, perhaps one that nothing is known of."""
        if holder not in self._facts:
            self.open(holder, Facts())

    def close(self, holder: Holder) -> None:
        """The program has ended."""
        if (facts := self._facts.pop(holder, None)) is not None:
            self._num_of[facts.tenant] -= 1
            if not self._num_of[facts.tenant]:
                del self._num_of[facts.tenant]
            if (family := self._families.get((facts.tenant, facts.family))) is not None:
                family.num_programs -= 1
                if not family.num_programs:
                    del self._families[facts.tenant, facts.family]

    def drop_peer(self, peer_id: str) -> None:
        for holder in [holder for holder in self._facts if holder.peer_id == peer_id]:
            self.close(holder)

    def served(self, holder: Holder, num_tokens: int) -> None:
        """So many tokens were computed for it, ever."""
        if (facts := self._facts.get(holder)) is not None:
            if (family := self._families.get((facts.tenant, facts.family))) is not None:
                family.num_tokens += num_tokens - facts.num_tokens
            facts.num_tokens = num_tokens

    def granted(self, holder: Holder, now: float, waited_s: float) -> None:
        """It has pages that it has waited for."""
        if waited_s >= AGING_S and (facts := self._facts.get(holder)) is not None:
            facts.gained, facts.kept_until = int(waited_s / AGING_S), now + KEEP_S

    def tenant_of(self, holder: Holder) -> str:
        return self._facts.get(holder, self._unknown).tenant

    def held_by_tenant(self) -> dict[str, int]:
        """Pages held by tenant; one that several programs have counts for each."""
        held: dict[str, int] = defaultdict(int)
        for holder, num_pages in self._ledger.held().items():
            held[self.tenant_of(holder)] += num_pages
        return held

    def over_share(self, waiting: Iterable[Holder], now: float) -> frozenset[str]:
        """Tenants that have had more than their share, among those that hold pages or wait for some."""
        if len(self._num_of) < 2:
            return frozenset()
        held = self.held_by_tenant()
        passed_s = max(0.0, now - self._had_at) if self._had_at > -math.inf else 0.0
        self._had_at = now
        active = {*held, *map(self.tenant_of, waiting)}
        known = [self._had[tenant] for tenant in active if tenant in self._had]
        least = min(known, default=0.0)
        had = {tenant: self._had.get(tenant, least) for tenant in active}  # who was away has no claim from then
        for tenant, num_pages in held.items():
            had[tenant] += num_pages * passed_s / max(self._weight_of(tenant), 1e-9)
        self._had = had
        most = min(had.values(), default=0.0) + SHARE_S * self._ledger.total
        return frozenset(tenant for tenant in active if had[tenant] > most)

    def rank(self, holder: Holder, now: float, over: frozenset[str], waited_s: float = 0.0) -> Rank:
        """Of a program, with a request that has waited so long; `over` as `over_share` gives it."""
        facts = self._facts.get(holder, self._unknown)
        gained = max(int(waited_s / AGING_S), facts.gained if now < facts.kept_until else 0)
        family = self._families.get((facts.tenant, facts.family))
        num_tokens = facts.num_tokens if family is None else family.num_tokens
        service = (num_tokens // SERVICE_TOKENS).bit_length()
        return Rank(facts.tenant in over, -facts.priority - gained, facts.deadline, service, facts.born, facts.number)
