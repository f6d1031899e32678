"""Who may have how much of a step: fair shares of the device's time, of tenants first, then of a tenant's inferlets.

The measure is the *bare step*, that of one inferlet which decodes one token.  Whoever decodes takes part in every
step, and what the others add to it decides how fast: each tenant, and each inferlet of a tenant, may add about as much
to a step as it would take for the least of them alone.  So each of n keeps at least 1/n of the speed that it would have
alone, and an inferlet that wants more than that (a prefill, a hundred sequences, costly outputs) gets it in slices.

Each account has spent some of its level's clock (virtual time; a form of deficit round robin, Shreedhar and Varghese
1995).  A step moves the clock by one share, and what an inferlet takes moves its account (a tenant's by that over its
weight): while it is not ahead of the clock, it may take what it is behind.  An account falls behind by at most
BURST_STEPS shares, which is what a newcomer begins with: a short prefill runs at once, a flood is soon held to its
share.  The clock never falls behind all who want something: nothing is kept from one inferlet while no other wants it.

Nobody looks at accounts in a step of even decodes.  Beside others, an inferlet that has but one row of the decode
table is *settled* once it is not ahead of the clock: its decode is free from there on, so that it never will be.
Settled rows are counted, by tenant, and need no account.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np

from pieray.arrays import F64, I64, Bools
from pieray.sched.accounts import Account, Demand, Tenant
from pieray.sched.costs import CostModel, Kind
from pieray.sched.lanes import Lanes, Registry
from pieray.sched.table import RowGroup

CROWD_STEPS = 2.0
"""Bare steps that all slices add to a step, at most, while somebody decodes; or as much as all who decode take."""
SLICE_OF_STEP = 0.7
"""What one may add to a step, as a part of what the step takes for the least of the others alone.  What is left of it
is for what no step measures: the work of the actor's threads and of receivers."""
FREE_OF_STEP = 0.3
"""The first decode of each in a step takes of nobody's share while it is no longer than that part of a step."""
ALONE_STEPS = 8.0
"""Bare steps that a step takes while nobody decodes: so long a newcomer may wait."""
BURST_STEPS = 64.0
"""Steps whose shares an account may fall behind by."""
WORK_FEES = 2.0
"""Commands join rows of others with as many times as much work as they pay for that, at most, and when one of their
inferlets is behind by both."""
RECENT_S = 1.0
"""An inferlet that has been away for less is taken to come back for a decode."""
PRESENT, GONE = math.inf, -math.inf
ONE_LANE = -1


class Shares:
    """`begin` for each step; then, for each command, `allowance` and `charge`, and `charge_rows` for settled rows.
    Times are in seconds, inferlets numbers of `lanes`."""

    def __init__(self, lanes: Lanes, weight_of: Callable[[str], float] = lambda _: 1.0) -> None:
        """`weight_of` gives a tenant's weight in shares."""
        self._weight_of = weight_of
        self._tenant = lanes.column(int, -1)
        self._away_since = lanes.column(float, GONE)  # PRESENT while it has commands
        self._is_settled = lanes.column(bool, False)
        self._accounts: dict[int, Account] = {}
        self._numbers: Registry[str] = Registry()
        self._tenants: dict[int, Tenant] = {}
        self._clock = 0.0  # of tenants
        self._share = math.inf  # seconds that it moves by in a step
        self._burst_s = 0.0
        self._is_alone = False
        self._are_tenants_alone = True
        self._left_s = 0.0  # of this step, for what is more than each inferlet's first decode
        self._least_s = 0.0  # what is worth a place in a step
        self._fee_s = 0.0
        self._joining_s = 0.0  # by which an inferlet must be behind for its commands to join rows of others
        self._num_steps = 1  # that clocks move by
        self._charged: list[Account] = []  # in the step that is being filled

    # --- accounts --------------------------------------------------------------------------------

    def introduce(self, lane: int, tenant: str) -> None:
        """Whose inferlet it is."""
        self._leave_tenant(lane)
        number = self._numbers.open(tenant)
        self._tenant.values[lane] = number
        if number not in self._tenants:
            self._tenants[number] = Tenant(self._weight_of(tenant))
        self._tenants[number].num_lanes += 1

    def close(self, lane: int) -> None:
        """The inferlet has ended."""
        self._leave_tenant(lane)
        self._tenant.values[lane] = -1

    def _leave_tenant(self, lane: int) -> None:
        self._accounts.pop(lane, None)
        number = int(self._tenant.values[lane])
        if number >= 0:
            tenant = self._tenants[number]
            tenant.num_lanes -= 1
            if not tenant.num_lanes:
                del self._tenants[number]
                self._numbers.close(self._numbers.key(number))

    def arrive(self, lane: int) -> None:
        """The inferlet has commands (again)."""
        if self._tenant.values[lane] < 0:
            self.introduce(lane, "")  # those of nobody share one tenant
        self._away_since.values[lane] = PRESENT

    def arrive_rows(self, lanes: I64) -> None:
        """The inferlets have rows, one each, and nothing else."""
        for lane in lanes[self._tenant.values[lanes] < 0].tolist():
            self.introduce(lane, "")
        self._away_since.values[lanes] = PRESENT

    def leave(self, lanes: int | I64, now: float) -> None:
        """The inferlets have no commands for the moment."""
        self._away_since.values[lanes] = now

    def account(self, lane: int) -> Account:
        """The inferlet's account."""
        found = self._accounts.get(lane)
        if found is None:
            found = self._accounts[lane] = Account(self._tenants[int(self._tenant.values[lane])])
        return found

    def tenants(self, lanes: I64) -> I64:
        """Numbers of the inferlets' tenants."""
        found: I64 = self._tenant.values[lanes]
        return found

    def unsettle(self, lane: int) -> None:
        """There is more of the inferlet than one row."""
        self._is_settled.values[lane] = False

    def are_settled(self, lanes: I64) -> Bools:
        """Which of the inferlets of these rows are settled, and have but one row."""
        found: Bools = self._is_settled.values[lanes]
        if len(lanes) > 1 and int((count := np.bincount(lanes)).max()) > 1:
            found &= count[lanes] == 1
        return found

    # --- a step ----------------------------------------------------------------------------------

    def begin(
        self,
        now: float,
        demands: list[Demand],
        rows: I64,
        seconds: F64,
        step_s: float,
        token_s: float,
        *,
        fee_s: float = 0.0,
        num_steps: int = 1,
    ) -> Bools:
        """A step is to be filled for those who want something, and for settled rows, given by their inferlets with what
        each takes.  One without anything takes `step_s`, and a token of a short sequence adds `token_s`.  `fee_s`: what
        commands add to it, whatever they are, see `pay`.  `num_steps`: it, and those before it that nobody looked at.

        Returns the rows that need no account in this step, either.
        """
        bare = step_s + token_s
        self._fee_s, self._num_steps = fee_s, num_steps
        self._charged.clear()
        self._joining_s = (1.0 + WORK_FEES) * fee_s
        for tenant in self._tenants.values():
            tenant.lanes.clear()
            tenant.num_rows = tenant.num_away = 0
            tenant.rows_s = tenant.decode_s = tenant.taken = 0.0
            tenant.least = math.inf
        self._count_away(now, token_s)
        self._count_rows(rows, seconds)
        for one in demands:
            tenant, cost = one.account.tenant, one.decode_s
            one.account.taken, one.account.may_join = 0.0, False
            tenant.lanes.append(one)
            tenant.decode_s += cost
            if 0.0 < cost < tenant.least:
                tenant.least = cost
        present = [tenant for tenant in self._tenants.values() if tenant.is_wanting or tenant.num_away]
        wanting = [tenant for tenant in present if tenant.is_wanting]
        self._is_alone = len(demands) + len(rows) == 1 and not any(tenant.num_away for tenant in present)
        self._are_tenants_alone = len(present) == 1
        mean = sum(tenant.weight for tenant in present) / max(len(present), 1)
        for tenant in present:
            tenant.part = tenant.weight / mean
        self._left_s, share = self._begin_tenants(wanting, present, step_s, bare)
        for tenant in wanting:
            self._begin_inferlets(tenant, step_s, bare, share * tenant.part)
        return self._are_free(rows, seconds, share)

    def _count_away(self, now: float, token_s: float) -> None:
        since = self._away_since.values
        is_recent = now - since <= RECENT_S
        away = self._tenant.values[is_recent & (since != PRESENT)]
        for number, count in enumerate(np.bincount(away).tolist() if len(away) else ()):
            if count:
                tenant = self._tenants[number]
                tenant.num_away, tenant.decode_s, tenant.least = count, count * token_s, token_s
        for lane in [lane for lane in self._accounts if not is_recent[lane]]:  # such a one is not waited for
            del self._accounts[lane]
        held = set(np.unique(self._tenant.values[is_recent]).tolist())
        for number, tenant in self._tenants.items():
            if number not in held:
                tenant.spent, tenant.clock = -math.inf, 0.0

    def _count_rows(self, rows: I64, seconds: F64) -> None:
        if not len(rows):
            return
        numbers = self._tenant.values[rows]
        size = int(numbers.max()) + 1
        least = np.full(size, math.inf)
        np.minimum.at(least, numbers, seconds)
        columns = np.bincount(numbers).tolist(), np.bincount(numbers, seconds).tolist(), least.tolist()
        for number, (count, total, shortest) in enumerate(zip(*columns, strict=True)):
            if count:
                tenant = self._tenants[number]
                tenant.num_rows, tenant.rows_s = count, total
                tenant.decode_s += total
                tenant.least = min(tenant.least, shortest)

    def _are_free(self, rows: I64, seconds: F64, tenant_share: float) -> Bools:
        """Settled rows that take of no inferlet's share, of tenants that have enough left for all of theirs."""
        if not len(rows):
            return np.zeros(0, bool)
        numbers = self._tenant.values[rows]
        limits = np.full(int(numbers.max()) + 1, -math.inf)
        for number in np.unique(numbers).tolist():
            tenant = self._tenants[number]
            has_room = not tenant.is_ahead and tenant.rows_s - tenant.least < self._room(tenant)
            if self._are_tenants_alone or (has_room and tenant.decode_s <= tenant_share * tenant.part):
                limits[number] = math.inf if self._is_alone else tenant.free_s
        found: Bools = seconds <= limits[numbers]
        for lane in rows[~found].tolist():
            account = self.account(lane)
            account.taken, account.is_ahead = 0.0, account.spent > account.tenant.clock
            self._is_settled.values[lane] = False
        return found

    def charge_rows(self, rows: I64, seconds: F64) -> None:
        """Charge settled rows that need no account."""
        if self._are_tenants_alone:
            return
        totals = np.bincount(self._tenant.values[rows], seconds)
        for number in np.flatnonzero(totals).tolist():
            self._charge_tenant(self._tenants[number], float(totals[number]))

    def repeat(self, num_steps: int) -> None:
        """As many more steps have had the same rows as the one that was filled last, and nothing else."""
        for account in self._charged:
            account.spent += num_steps * account.own
        for tenant in self._tenants.values():
            tenant.spent += num_steps * tenant.taken / tenant.part

    def _charge_tenant(self, tenant: Tenant, seconds: float) -> None:
        tenant.taken += seconds
        self._spend(tenant, seconds)

    def _spend(self, tenant: Tenant, seconds: float) -> None:
        tenant.spent = max(tenant.spent, self._clock - self._burst_s) + seconds / tenant.part

    def _room(self, tenant: Tenant) -> float:
        """What of the step is left to a tenant, beside others."""
        return max(min(self._clock - tenant.spent, self._burst_s) * tenant.part, self._least_s - tenant.taken)

    def _begin_tenants(
        self, wanting: list[Tenant], present: list[Tenant], step_s: float, bare: float
    ) -> tuple[float, float]:
        """What all slices of the step may add, and what one tenant's may."""
        self._least_s = bare / 4.0
        decoding = [tenant.decode_s for tenant in present if tenant.decode_s > 0.0]
        if self._are_tenants_alone:
            self._clock = max([self._clock, *(tenant.spent for tenant in wanting)])
            self._share = math.inf
            return math.inf, math.inf
        least = min(decoding, default=math.inf)
        crowd = max(CROWD_STEPS * bare, step_s + least * len(decoding)) if decoding else ALONE_STEPS * bare
        num_wanting_more = sum(
            tenant.decode_s > step_s + least or any(one.has_more for one in tenant.lanes) for tenant in wanting
        )
        self._share = share = min(SLICE_OF_STEP * (step_s + least), crowd / max(num_wanting_more, 1))
        self._burst_s = max(BURST_STEPS * share, self._joining_s)
        self._clock = max(self._clock + self._num_steps * share, min([tenant.spent for tenant in wanting]))
        for tenant in wanting:
            tenant.is_ahead = tenant.spent > self._clock
        return self._within(crowd), share

    def _within(self, crowd: float) -> float:
        """What slices may add to a step that may be longer by `crowd`, what they pay for as commands included, so that
        half of it at least is work; where they alone take twice as long, what is worth it."""
        fee = self._fee_s
        return max(crowd - fee, fee) if fee <= 2.0 * crowd else crowd + WORK_FEES * fee

    def _begin_inferlets(self, tenant: Tenant, step_s: float, bare: float, tenant_share: float) -> None:
        lanes, least = tenant.lanes, tenant.least
        is_decoding = least < math.inf
        if self._is_alone or not is_decoding:
            crowd = ALONE_STEPS * bare
        else:
            sizes = sum([one.decode_s if one.decode_s < least else least for one in lanes]) + tenant.num_rows * least
            crowd = max(CROWD_STEPS * bare, step_s + sizes)
        self._left_s = min(self._left_s, self._within(crowd))
        crowd = min(crowd, tenant_share)
        quantum = step_s + least
        tenant.free_s = 0.0 if tenant.decode_s > tenant_share else max(least, FREE_OF_STEP * quantum)
        if tenant.decode_s > tenant_share:
            num_wanting_more = len(lanes) + tenant.num_rows  # not even their decodes fit in what the tenant may take
        else:
            num_wanting_more = sum([one.has_more or one.decode_s > quantum for one in lanes])
        share = min(SLICE_OF_STEP * quantum, crowd / max(num_wanting_more, 1))
        tenant.share, tenant.burst_s = share, max(BURST_STEPS * share, self._joining_s)
        least_spent = min([one.account.spent for one in lanes], default=-math.inf)
        moved = tenant.clock + self._num_steps * share
        tenant.clock = clock = max(moved, -math.inf if tenant.num_rows else least_spent)
        for one in lanes:
            one.account.is_ahead = one.account.spent > clock
            self._is_settled.values[one.lane] = one.is_row and not one.account.is_ahead

    def are_even(self, costs: CostModel, rows: RowGroup, now: float) -> bool:
        """Whether nobody takes more than a share of a step of these rows alone: each inferlet has one of them, about as
        long as the others; or there is but one inferlet."""
        if rows.most_of_tenant is None:
            rows.most_of_tenant = self._most_of_tenant(rows.lanes)
        if rows.most_of_tenant == ONE_LANE:
            is_away = now - self._away_since.values <= RECENT_S
            is_away &= self._away_since.values != PRESENT
            return not is_away.any()
        seconds, (longest, shortest) = costs.seconds, rows.reach
        step_s, decode_s, slot_s = seconds[Kind.STEP], costs.decode(1, 0), seconds[Kind.ATTENTION]
        most = rows.most_of_tenant
        program_s = rows.most_work * seconds[Kind.PROGRAMS] / 1e6
        return most * (decode_s + slot_s * longest + program_s) <= step_s + decode_s + slot_s * shortest

    def _most_of_tenant(self, lanes: I64) -> float:
        """The most rows of one tenant, beside others, if each is of another inferlet: 0 for one row alone, ONE_LANE
        for many of one inferlet, infinite otherwise."""
        if len(lanes) == 1:
            return 0
        if (lanes == lanes[0]).all():
            return ONE_LANE
        if int(np.bincount(lanes).max()) > 1:
            return math.inf
        per_tenant = np.bincount(self._tenant.values[lanes])
        return 1 if np.count_nonzero(per_tenant) == 1 else int(per_tenant.max())

    def allowance(self, account: Account, *, is_decode: bool, is_row: bool = False) -> float:
        """Seconds that the inferlet may still take of this step; 0: nothing more.  The first decode of one that is not
        ahead of its share is never cut.  Commands that have waited to join rows of others may do the work that is worth
        it whatever else its tenant and it have taken meanwhile: that waits then, until it is paid for."""
        if self._is_alone:
            return math.inf if is_decode else self._left_s
        found = self._regular(account, is_decode=is_decode)
        if account.may_join and not is_row:
            found = max(found, min(WORK_FEES * self._fee_s - account.taken, self._left_s))
        return found

    def _regular(self, account: Account, *, is_decode: bool) -> float:
        if account.is_ahead:
            return 0.0
        tenant = account.tenant
        room = math.inf
        if not self._are_tenants_alone:
            if tenant.is_ahead:
                return 0.0
            room = self._room(tenant)
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
        if account.taken == 0.0:
            account.own = 0.0
            self._charged.append(account)
        account.taken += seconds
        account.own += own
        account.spent = max(account.spent, tenant.clock - tenant.burst_s) + own
        self._charge_tenant(tenant, seconds)

    def charge_aside(self, lane: int, seconds: float) -> None:
        """The inferlet has taken so much outside of steps."""
        if self._tenant.values[lane] < 0:
            self.introduce(lane, "")
        account = self.account(lane)
        tenant = account.tenant
        account.spent = max(account.spent, tenant.clock - tenant.burst_s) + seconds
        self._spend(tenant, seconds)  # `taken` is of the last step alone, which `repeat` counts again

    def charge_tenant_aside(self, name: str, seconds: float) -> None:
        """An inferlet of the tenant that has ended has taken so much outside of steps."""
        number = self._numbers.find(name)
        if number is not None:  # else nobody of the tenant is there
            self._spend(self._tenants[number], seconds)

    def steps_until(self, accounts: Collection[Account], num_waited: int) -> int:
        """In how many steps one of these inferlets, and its tenant, are far enough behind for its commands to join rows
        of others, or would be if they took nothing in those and in the `num_waited` steps before; 0: `may_join` says
        which are."""
        least = math.inf
        for account in accounts:
            tenant = account.tenant
            num_steps = self._steps(tenant.clock - account.spent, tenant.share, num_waited)
            if not self._are_tenants_alone:
                behind_s = (self._clock - tenant.spent) * tenant.part
                num_steps = max(num_steps, self._steps(behind_s, self._share * tenant.part, num_waited))
            account.may_join = num_steps == 0
            least = min(least, num_steps)
        return int(least)

    def _steps(self, behind_s: float, share: float, num_waited: int) -> int:
        lacking_s = self._joining_s - max(behind_s, num_waited * share)
        return math.ceil(lacking_s / share) if lacking_s > 0.0 else 0

    def pay(self, accounts: Collection[Account]) -> None:
        """Commands of these inferlets are in the step: they pay for what it takes longer whatever they are."""
        each = self._fee_s / len(accounts)
        for account in accounts:
            tenant = account.tenant
            account.spent = max(account.spent, tenant.clock - tenant.burst_s) + each
            self._charge_tenant(tenant, each)
