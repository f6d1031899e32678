"""Who may have how much of a step: fair shares of the device's time, of tenants first, then of a tenant's inferlets.

The measure is the *bare step*, that of one inferlet which decodes one token.  Whoever decodes takes part in every
step, and what the others add to it decides how fast: each tenant, and each inferlet of a tenant, may add about as much
to a step as it would take for the least of them alone.  So each of n keeps at least 1/n of the speed that it would have
alone, and an inferlet that wants more than that (a prefill, a hundred sequences, costly outputs) gets it in slices.

Each account has spent some of its level's clock (virtual time; a form of deficit round robin, Shreedhar and Varghese
1995).  A step moves the clock by one share, and what an inferlet takes moves its account: while it is not ahead of the
clock, it may take what it is behind.  An account falls behind by at most BURST_STEPS shares, which is what a newcomer
begins with: a short prefill runs at once, a flood is soon held to its share.  The clock never falls behind all who want
something: nothing is kept from one inferlet while no other wants it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

from pieray.sched.commands import LaneKey
from pieray.sched.costs import CostModel, Kind

CROWD_STEPS = 2.0
"""Bare steps that all slices add to a step, at most, while somebody decodes; or as much as all who decode take."""
SLICE_OF_STEP = 0.8
"""What one may add to a step, as a part of what the step takes for the least of the others alone.  What is left of it
is for what no step measures: the work of the actor's threads and of receivers."""
FREE_OF_STEP = 0.3
"""The first decode of each in a step takes of nobody's share while it is no longer than that part of a step."""
ALONE_STEPS = 8.0
"""Bare steps that a step takes while nobody decodes: so long a newcomer may wait."""
BURST_STEPS = 64.0
"""Steps whose shares an account may fall behind by."""
RECENT_S = 1.0
"""An inferlet that has been away for less is taken to come back for a decode."""


@dataclass(slots=True, eq=False)
class Tenant:
    """A tenant that has, or had a moment ago, inferlets with commands; `clock` is that of its inferlets' accounts."""

    spent: float
    clock: float = 0.0
    burst_s: float = 0.0  # that its inferlets may fall behind by
    free_s: float = 0.0  # that the first decode of each in a step takes of nobody's share
    num_accounts: int = 0
    num_away: int = 0
    taken: float = 0.0  # in the step that is being filled
    is_ahead: bool = False  # of its clock, as that step began
    # what it wants of that step
    decode_s: float = 0.0
    lanes: list[Demand] = field(default_factory=list)
    least: float = math.inf


@dataclass(slots=True, eq=False)
class Account:
    """One inferlet's."""

    tenant: Tenant
    spent: float
    taken: float = 0.0
    is_ahead: bool = False
    away_since: float | None = None


@dataclass(slots=True)
class Demand:
    """What an inferlet wants of a step: seconds of decodes, and whether there is more than those."""

    account: Account
    decode_s: float
    has_more: bool


Tenants: TypeAlias = dict[str, Tenant]


class Shares:
    """`begin` for each step; then, for each command, `allowance` and `charge`.  Times are in seconds."""

    def __init__(self) -> None:
        self._accounts: dict[LaneKey, Account] = {}
        self._tenants: Tenants = {}
        self._away: dict[LaneKey, Account] = {}  # in order of `away_since`
        self._clock = 0.0  # of tenants
        self._burst_s = 0.0
        self._is_alone = False
        self._are_tenants_alone = True
        self._left_s = 0.0  # of this step, for what is more than each inferlet's first decode
        self._least_s = 0.0  # what is worth a place in a step

    # --- accounts --------------------------------------------------------------------------------

    def open(self, key: LaneKey, tenant: str) -> Account:
        """The account of an inferlet that has commands (again)."""
        found = self._accounts.get(key)
        if found is not None:
            if found.away_since is not None:
                found.away_since = None
                found.tenant.num_away -= 1
                self._away.pop(key, None)
            return found
        owner = self._tenants.get(tenant)
        if owner is None:
            owner = self._tenants[tenant] = Tenant(-math.inf)
        owner.num_accounts += 1
        found = self._accounts[key] = Account(owner, -math.inf)
        return found

    def leave(self, key: LaneKey, now: float) -> None:
        """The inferlet has no commands for the moment."""
        found = self._accounts.get(key)
        if found is not None and found.away_since is None:
            found.away_since = now
            found.tenant.num_away += 1
            self._away[key] = found

    def close(self, key: LaneKey) -> None:
        """The inferlet has ended, or been away for long."""
        found = self._accounts.pop(key, None)
        if found is None:
            return
        self._away.pop(key, None)
        owner = found.tenant
        owner.num_accounts -= 1
        owner.num_away -= found.away_since is not None
        if not owner.num_accounts:
            self._tenants = {name: one for name, one in self._tenants.items() if one is not owner}

    # --- a step ----------------------------------------------------------------------------------

    def begin(self, now: float, demands: list[Demand], step_s: float, decode_s: float) -> None:
        """A step is to be filled for those who want something; one without anything takes `step_s`, and a token of a
        short sequence adds `decode_s`."""
        self._forget_old(now)
        bare = step_s + decode_s
        self._is_alone = len(demands) == 1 and not self._away
        for tenant in self._tenants.values():
            tenant.lanes.clear()
            tenant.decode_s = tenant.num_away * decode_s
            tenant.least = decode_s if tenant.num_away else math.inf
            tenant.taken = 0.0
        for one in demands:
            tenant, cost = one.account.tenant, one.decode_s
            one.account.taken = 0.0
            tenant.lanes.append(one)
            tenant.decode_s += cost
            if 0.0 < cost < tenant.least:
                tenant.least = cost
        wanting = [tenant for tenant in self._tenants.values() if tenant.lanes]
        present = [tenant for tenant in self._tenants.values() if tenant.lanes or tenant.num_away]
        self._are_tenants_alone = len(present) == 1
        self._left_s, share = self._begin_tenants(wanting, present, step_s, bare)
        for tenant in wanting:
            self._begin_inferlets(tenant, step_s, bare, share)

    def _begin_tenants(self, wanting: list[Tenant], present: list[Tenant], step_s: float,
                       bare: float) -> tuple[float, float]:  # fmt: skip
        """What all slices of the step may add, and what one tenant's may."""
        decoding = [tenant.decode_s for tenant in present if tenant.decode_s > 0.0]
        if self._are_tenants_alone:
            self._clock = max([self._clock, *(tenant.spent for tenant in wanting)])
            return math.inf, math.inf
        least = min(decoding, default=math.inf)
        crowd = max(CROWD_STEPS * bare, step_s + least * len(decoding)) if decoding else ALONE_STEPS * bare
        num_wanting_more = sum(
            tenant.decode_s > step_s + least or any(one.has_more for one in tenant.lanes) for tenant in wanting
        )
        share = min(SLICE_OF_STEP * (step_s + least), crowd / max(num_wanting_more, 1))
        self._burst_s = BURST_STEPS * share
        self._clock = max(self._clock + share, min([tenant.spent for tenant in wanting]))
        for tenant in wanting:
            tenant.is_ahead = tenant.spent > self._clock
        return crowd, share

    def _begin_inferlets(self, tenant: Tenant, step_s: float, bare: float, tenant_share: float) -> None:
        lanes, least = tenant.lanes, tenant.least
        is_decoding = least < math.inf
        if self._is_alone or not is_decoding:
            crowd = ALONE_STEPS * bare
        else:
            sizes = sum([one.decode_s if one.decode_s < least else least for one in lanes])
            crowd = max(CROWD_STEPS * bare, step_s + sizes)
        self._left_s = min(self._left_s, crowd)
        crowd = min(crowd, tenant_share)
        quantum = step_s + least
        tenant.free_s = 0.0 if tenant.decode_s > tenant_share else max(least, FREE_OF_STEP * quantum)
        if tenant.decode_s > tenant_share:
            num_wanting_more = len(lanes)  # not even their decodes fit in what the tenant may take
        else:
            num_wanting_more = sum([one.has_more or one.decode_s > quantum for one in lanes])
        share = min(SLICE_OF_STEP * quantum, crowd / max(num_wanting_more, 1))
        self._least_s = bare / 4.0
        tenant.burst_s = BURST_STEPS * share
        tenant.clock = clock = max(tenant.clock + share, min([one.account.spent for one in lanes]))
        for one in lanes:
            one.account.is_ahead = one.account.spent > clock

    def are_even(self, costs: CostModel, shortest: int, longest: int, most: int) -> bool:
        """Whether nobody takes more than a share of a step of decodes, one of each inferlet: they attend to from
        `shortest` to `longest` slots (times their tokens), and a tenant has at most `most` of them."""
        step_s, decode_s, slot_s = costs.seconds[Kind.STEP], costs.decode(1, 0), costs.seconds[Kind.ATTENTION]
        return most * (decode_s + slot_s * longest) <= step_s + decode_s + slot_s * shortest

    def allowance(self, account: Account, *, is_decode: bool) -> float:
        """Seconds that the inferlet may still take of this step; 0: nothing more.  The first decode of one that is not
        ahead of its share is never cut."""
        if self._is_alone:
            return math.inf if is_decode else self._left_s
        if account.is_ahead:
            return 0.0
        tenant = account.tenant
        room = math.inf
        if not self._are_tenants_alone:
            if tenant.is_ahead:
                return 0.0
            room = max(min(self._clock - tenant.spent, self._burst_s), self._least_s - tenant.taken)
            if room <= 0.0:
                return 0.0
        if is_decode and account.taken == 0.0:
            return math.inf
        own = max(min(tenant.clock - account.spent, tenant.burst_s), self._least_s - account.taken)
        return max(min(room, own, self._left_s), 0.0)

    def charge(self, account: Account, seconds: float, *, is_decode: bool) -> None:
        """The inferlet takes so much of this step."""
        tenant = account.tenant
        own = seconds
        if not is_decode or account.taken > 0.0:
            self._left_s -= seconds
        else:
            own = max(0.0, seconds - tenant.free_s)
        account.taken += seconds
        account.spent = max(account.spent, tenant.clock - tenant.burst_s) + own
        tenant.taken += seconds
        tenant.spent = max(tenant.spent, self._clock - self._burst_s) + seconds

    def _forget_old(self, now: float) -> None:
        """Those who have been away for long are not waited for."""
        old = []
        for key, account in self._away.items():
            if account.away_since is None or now - account.away_since <= RECENT_S:
                break
            old.append(key)
        for key in old:
            self.close(key)
