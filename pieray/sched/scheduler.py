"""Commands and rows until a step takes them: what waits for what, what fails with what, what runs in the next step.

No tensors, no sockets, no clock of its own.

* Commands of one queue run in order of arrival: none runs in an earlier step than one before it.  Those that
  do not conflict may share a step, so that one queue can carry a whole beam (`queues.py`).
* Commands of one inferlet that conflict on a page run in order of arrival, whatever their queues (`hazards.py`).
* Copies and swaps run at the start of the step, no more than `max_swap_pages` of the latter; a forward that depends on
  one may run in the same step.
* Whose turn it is, and how much of it a step takes: `batch_former.py`.
* A plan stays at the head of its queue from step to step.  Each step's tokens count as having just arrived.
* What only decodes is a row of the table (`table.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pieray.arrays import I64, U32, Bools
from pieray.sched.batch_former import BatchFormer
from pieray.sched.commands import Command, page_slots
from pieray.sched.costs import CostModel
from pieray.sched.hazards import UnwrittenByInferlet
from pieray.sched.lanes import LaneKey, Lanes, Registry
from pieray.sched.plans import PlanCommand
from pieray.sched.queues import CommandQueues, InferletQueues
from pieray.sched.shares import Shares
from pieray.sched.step_plan import StepLimits, StepPlan
from pieray.sched.table import RUN, DecodeTable, Own, stop_column


class Scheduler:
    """Holds commands until a step takes them.  `next_step` and then `finish` for each command that has ended.

    Without `costs`, tokens and requests alone bound a step, and nobody is held to a share.
    """

    def __init__(
        self,
        page_size: int,
        max_batch_tokens: int,
        max_batch_requests: int,
        max_wait_s: float = 1.0,
        costs: CostModel | None = None,
        max_swap_pages: int = 256,
        weight_of: Callable[[str], float] = lambda _: 1.0,
    ) -> None:
        """`weight_of` gives a tenant's weight in shares."""
        self.page_size = page_size
        self.limits = StepLimits(max_batch_tokens, max_batch_requests, max_wait_s, max_swap_pages)
        self.table = DecodeTable(page_size)
        self.lanes: Lanes = Lanes()
        self.queues = CommandQueues()
        self._peers: Registry[str] = Registry()
        self._peer = self.lanes.column(int, 0)
        self._num_passes = self.lanes.column(int, 0)  # passes that are rows
        self._has_commands = self.lanes.column(bool, False)
        self._unwritten = UnwrittenByInferlet(self.lanes, page_size)
        self._shares = Shares(self.lanes, weight_of)
        self.former = BatchFormer(self.queues, self.table, self._shares, self.limits, costs)
        self._now = 0.0  # of the last step

    @property
    def is_full(self) -> bool:
        """Whether more commands could not make the next step any fuller, as far as can be told at once."""
        limits, num_lanes = self.limits, self.queues.num_active + len(self.table)
        return num_lanes >= limits.max_batch_requests or self.queues.num_tokens >= limits.max_batch_tokens

    @property
    def num_queued(self) -> int:
        """Commands and rows that are not fully scheduled."""
        return self.queues.num_commands

    @property
    def has_work(self) -> bool:
        """Whether a step would run anything: a plan may wait for pages, and others for it."""
        return len(self.table.ready()) > 0 or any(True for _ in self.queues.heads())

    def is_busy(self, key: LaneKey) -> bool:
        """Whether the inferlet has unfinished commands."""
        number = self.lanes.find(key)
        return key in self.queues.by_inferlet or (number is not None and self._num_passes.values[number] > 0)

    def idle_lanes(self, lanes: I64) -> I64:
        """Of these inferlets those that have no unfinished commands."""
        is_idle = (self._num_passes.values[lanes] == 0) & ~self._has_commands.values[lanes]
        idle: I64 = lanes[is_idle]
        return idle

    # --- in --------------------------------------------------------------------------------------

    def introduce(self, key: LaneKey, tenant: str) -> None:
        """Whose inferlet it is: to be told before its commands come.  Those of nobody share one tenant."""
        self._shares.introduce(self.open(key), tenant)

    def charge(self, key: LaneKey, tenant: str, seconds: float) -> None:
        """The inferlet, or its tenant if it has ended, has had so much of the device's time outside of steps."""
        number = self.lanes.find(key)
        if number is not None:
            self._shares.charge_aside(number, seconds)
        else:
            self._shares.charge_tenant_aside(tenant, seconds)

    def open(self, key: LaneKey) -> int:
        """The inferlet's number."""
        number = self.lanes.find(key)
        if number is None:
            number = self.lanes.open(key)
            self._peer.values[number] = self._peers.open(key[0])
        return number

    def by_peer(self, lanes: I64) -> list[tuple[str, slice | I64]]:
        """The peers of these inferlets, and the places of each."""
        peers = self._peer.values[lanes]
        if not len(peers):
            return []
        if (peers == peers[0]).all():
            return [(self._peers.key(int(peers[0])), slice(None))]
        return [(self._peers.key(one), np.flatnonzero(peers == one)) for one in np.unique(peers).tolist()]

    def submit(self, command: Command, now: float) -> bool:
        """Take a command; False: what it reads was to be written by one that failed, so it must be failed too."""
        key, queues = command.lane, self.queues
        if not self._unwritten.admit(command):
            return False
        lane = queues.by_inferlet.get(key)
        if lane is None:
            lane = queues.open(key, self.open(key))
            self._shares.arrive(lane.number)
            self._has_commands.values[lane.number] = True
        self._shares.unsettle(lane.number)
        queues.append(lane, command, now)
        return True

    # --- rows ------------------------------------------------------------------------------------

    def may_be_rows(self, lanes: I64, pages: U32, kv_lens: I64) -> Bools:
        """Which passes of one token may be rows, given with their inferlets and pages [n, W], 0 behind their own: those
        that wait for no other command of their inferlet, and none for them."""
        is_free: Bools = ~(self._has_commands.values[lanes] | self._unwritten.has_any.values[lanes])
        others = self._num_passes.values[lanes] > 0
        if len(lanes) > 1:
            others |= np.bincount(lanes)[lanes] > 1
        if not others.any():
            return is_free
        rows = self.table.of_lanes(lanes[others])
        rows = rows[self.table.rows["flags"][rows] & RUN == 0]
        width = max(pages.shape[1], self.table.pages.shape[1])
        used = np.zeros((int(others.sum()) + len(rows), width), np.int64)
        used[: len(used) - len(rows), : pages.shape[1]] = pages[others]
        used[len(used) - len(rows) :, : self.table.pages.shape[1]] = self.table.pages[rows]
        ends = np.concatenate((kv_lens[others], self.table.rows["kv_len"][rows]))
        last = np.minimum(ends // self.page_size, width - 1)
        used[np.arange(width) > last[:, None]] = -1
        written = used[np.arange(len(used)), last]
        if int(np.isin(used, written).sum()) > len(np.unique(written)):  # one uses what another writes
            is_free &= ~others
        return is_free

    def add_passes(self, records: npt.NDArray[np.void], pages: U32, own: list[Own], now: float) -> None:
        """Take passes as rows; see `may_be_rows`."""
        lanes = records["lane"]
        first = self.queues.take_turns(len(records))
        records["turn"] = np.arange(first, first + len(records))
        records["arrived"] = now
        self._shares.arrive_rows(lanes)
        np.add.at(self._num_passes.values, lanes, 1)
        self.queues.count(len(records), len(records))
        self.table.append(records, pages, own)

    def has_passes(self, key: LaneKey) -> bool:
        """Whether passes of the inferlet are rows."""
        return bool(self._num_passes.values[self.open(key)])

    def passes_of(self, key: LaneKey) -> I64:
        """Rows that are passes of the inferlet."""
        number = self.lanes.find(key)
        if number is None or not self._num_passes.values[number]:
            return np.zeros(0, np.int64)
        table = self.table.rows
        return np.flatnonzero((table["lane"] == number) & (table["flags"] & RUN == 0))

    def remove_passes(self, rows: I64) -> None:
        """These rows have run, or become commands."""
        lanes = self.table.rows["lane"][rows]
        np.subtract.at(self._num_passes.values, lanes, 1)
        self.queues.count(-len(rows), -len(rows))
        self.table.remove(rows)
        self._shares.leave(self.idle_lanes(lanes), self._now)

    def _to_row(self, plan: PlanCommand) -> None:
        lane = self.queues.by_inferlet[plan.lane]
        self.queues.hold(lane, plan)
        record = np.array([plan.record(lane.number)], self.table.rows.dtype)
        own = Own(plan.sampler, plan.adapter, plan)
        (plan.row,) = self.table.append(record, plan.pages[None], [own], stop_column(plan.stop_tokens)).tolist()

    def leave_rows(self, rows: Sequence[int]) -> None:
        """Plans that are rows become commands again, at the heads of their queues."""
        plans = [plan for row in rows if (plan := self.table.own[row].plan) is not None]
        for plan in plans:
            plan.leave_row(self.table.rows[plan.row])
            self.queues.resume(plan)
        if plans:
            self.table.remove(np.array(rows))

    # --- out -------------------------------------------------------------------------------------

    def next_step(self, now: float) -> StepPlan:
        """Choose, and count as scheduled, what runs in the next step; empty without work."""
        self._now = now
        return self.former.next_step(now)

    def finish(self, command: Command) -> None:
        """A scheduled command has ended, well or not."""
        lane = self.queues.by_inferlet.get(command.lane)
        if lane is not None and lane.remove(command):
            self._left(lane)

    def _left(self, lane: InferletQueues) -> None:
        """Commands of the inferlet have left."""
        if not lane.unfinished:
            self.queues.close(lane.key)
            self._has_commands.values[lane.number] = False
            if not self._num_passes.values[lane.number]:
                self._shares.leave(lane.number, self._now)

    def drawn(self, plan: PlanCommand, num_due: int) -> None:
        """A plan of the step has drawn: it ends, or has other tokens to run than the `num_due` that it had.  From here
        on it is a row, if that is all that it needs."""
        self.recount(plan, num_due)
        if plan.lane in self._unwritten:
            end = plan.kv_len + plan.num_done
            self._unwritten.clear(plan.lane, page_slots(plan.pages.tolist(), plan.kv_len, end, self.page_size))
        if plan.finish is not None:
            self.queues.unqueue(self.queues.by_inferlet[plan.lane], plan)
            self.finish(plan)
        elif plan.may_be_row and plan.lane not in self._unwritten:
            self._to_row(plan)

    def recount(self, plan: PlanCommand, num_due: int) -> None:
        """A plan has other tokens to run than the `num_due` that it had."""
        self.queues.count(0, plan.num_due - num_due)

    def extend(self, plan: PlanCommand, pages: U32) -> None:
        """A plan gets more pages."""
        index = self.queues.by_inferlet[plan.lane].index
        if index is not None:
            index.extend(plan, pages.tolist())
        plan.extend(pages)
        if plan.row >= 0:
            self.table.extend(plan.row, pages)

    def fail(self, command: Command) -> list[Command]:
        """A scheduled command has failed: it leaves, with all later ones that read what it was to write.

        Returns those others, in order of arrival, for the caller to answer; all are marked `is_over`.
        """
        if command.is_over:
            return []
        lane = self.queues.by_inferlet[command.lane]
        self.leave_rows(lane.rows())
        unwritten = self._unwritten.open(lane.key)
        unwritten.add(command)
        later = [c for c in lane.unfinished.values() if c.seq > command.seq]
        failed_with_it = [c for c in later if not unwritten.admit(c)]
        self._unwritten.settle(lane.key)
        lane.drop([command, *failed_with_it])
        self.queues.drop_over(lane)
        self._left(lane)
        return failed_with_it

    def fail_pass(self, row: int) -> None:
        """A pass that is a row has failed: what reads its slot must not run."""
        record = self.table.rows[row]
        page, offset = divmod(int(record["kv_len"]), self.page_size)
        key = self.lanes.key(int(record["lane"]))
        self._unwritten.open(key).add_slots({int(self.table.pages[row, page]): 1 << offset})

    # --- the end of inferlets --------------------------------------------------------------------

    def cancel(self, peer_id: str, inferlet: int | None = None) -> list[Command]:
        """Drop all commands of an inferlet, or of all of a peer's; returns them, but for passes that are rows.

        All are marked `is_over`.
        """
        if inferlet is None:
            keys = [key for key in self.lanes if key[0] == peer_id]
        else:
            keys = [key for key in ((peer_id, inferlet),) if key in self.lanes]
        numbers = np.array([self.open(key) for key in keys], np.int64)
        dropped: list[Command] = []
        if len(numbers) and len(self.table):
            rows = self.table.of_lanes(numbers)
            passes = rows[self.table.rows["flags"][rows] & RUN == 0]
            self.queues.count(-len(passes), -len(passes))
            runs = [plan for row in rows.tolist() if (plan := self.table.own[row].plan) is not None]
            self.table.remove(rows)
            for plan in runs:
                plan.row = -1
                self.queues.count(-1, -1)
        for key, number in zip(keys, numbers.tolist(), strict=True):
            self._unwritten.close(key)
            dropped += self.queues.close(key)
            self._shares.close(number)
            self.lanes.close(key)
        if inferlet is None:
            self._peers.close(peer_id)
        for command in dropped:
            command.is_over = True
        return dropped

    def peers(self) -> set[str]:
        """Those that have inferlets here."""
        return {key[0] for key in self.lanes}
