"""What runs in the next step: order, hazards, shares, priorities.  No tensors, no sockets, no clock of its own.

* Commands of one queue run in order of arrival: none runs in an earlier step than one before it.  Those that
  do not conflict may share a step, so that one queue can carry a whole beam.
* Commands of one inferlet that conflict on a page run in order of arrival, whatever their queues.
* Copies and swaps run at the start of the step, no more than `max_swap_pages` of the latter; a forward that depends on
  one may run in the same step.
* Decodes (at most DECODE_TOKENS tokens) come first, prefills share what is left of the token budget and are
  cut where it ends.  Within each: higher priority first, then first come, first served.
* Beside a program of higher priority, others of its tenant are in as many steps as make it little slower
  (`precedence.py`).
* Nothing starves: a command that has waited for `max_wait_s` goes before all that arrived later, whatever
  their kind and priority.  So it waits at most `max_wait_s`, plus the steps for what arrived before it.
* With a cost model, time is shared (`shares.py`): all of the above decides who comes first among those who have not
  had their share.  What has none left, aged or urgent, waits for the next step, and prefills and outputs are cut to
  what is left of it.
* Work-conserving: no step is empty while anything may run, and an inferlet alone has all of it.
* A plan stays at the head of its queue from step to step.  Each step's tokens count as having just arrived.
* What only decodes is a row of the table (`table.py`).  Rows are decodes like others; they are taken all at once if all
  of them fit and nobody takes more than a share, else each by itself.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pieray.sched.chunks import Chunk, add_chunk, add_rows, cut, decode_seconds, whole
from pieray.sched.commands import U32, Command, ForwardCommand, MoveCommand, page_slots
from pieray.sched.costs import CostModel, Kind, Work, no_work
from pieray.sched.hazards import PageIndex, Poison
from pieray.sched.lanes import I64, LaneKey, Lanes, Registry
from pieray.sched.plans import PlanCommand
from pieray.sched.precedence import Precedence, are_lower
from pieray.sched.shares import Demand, Shares
from pieray.sched.swap import SwapCommand
from pieray.sched.table import RUN, SPECIAL, DecodeTable, Own, RowGroup, stop_column
from pieray.urgency import launch_priority

DECODE_TOKENS = 16
"""A pass of so few tokens is a decode: one token, or the drafts of one."""
AGED, COPY, DECODE, PREFILL = range(4)
"""Classes, in the order in which they are given room."""

B1 = npt.NDArray[np.bool_]
_Candidate: TypeAlias = tuple[int, int, int, Command | int]  # class, minus priority, order of arrival, command or row


@dataclass(slots=True)
class StepPlan:
    """One step: `copies` and swaps in order, then all `forwards` and a `group` of rows of the table.  `work` is what it
    is made of, if there is a cost model."""

    copies: list[MoveCommand] = field(default_factory=list)
    forwards: list[Chunk] = field(default_factory=list)
    group: RowGroup | None = None
    picked: list[int] = field(default_factory=list)  # rows chosen one by one, while the step is being filled
    num_tokens: int = 0
    num_swapped: int = 0  # pages
    work: Work = field(default_factory=no_work)

    @property
    def num_requests(self) -> int:
        return len(self.forwards) + (len(self.picked) if self.group is None else len(self.group))


class _Lane:
    """One inferlet's commands, but for passes that are rows."""

    __slots__ = ("held", "index", "number", "queues", "unfinished")

    def __init__(self, number: int) -> None:
        self.number = number
        self.queues: dict[int, deque[Command]] = {}  # not fully scheduled; none is empty
        self.held: dict[int, deque[Command]] = {}  # behind a plan that is a row
        self.unfinished: dict[int, Command] = {}  # by order of arrival: in queues, rows or in the running step
        self.index: PageIndex | None = None  # only from the second unfinished command on


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
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_requests = max_batch_requests
        self.max_wait_s = max_wait_s
        self.max_swap_pages = max_swap_pages
        self.table = DecodeTable(page_size)
        self.lanes: Lanes = Lanes()
        self._peers: Registry[str] = Registry()
        self._peer = self.lanes.column(int, 0)
        self._num_passes = self.lanes.column(int, 0)  # passes that are rows
        self._has_commands = self.lanes.column(bool, False)
        self._is_poisoned = self.lanes.column(bool, False)
        self._costs = costs
        self._shares = Shares(self.lanes, weight_of)
        self._precedence = Precedence()
        self._is_ranked = False  # whether candidates of the last step had several priorities, as far as it was looked
        self._now = 0.0  # of the last step
        self._seconds = np.zeros(0)  # what each row of the table takes, where accounts are looked at
        self._lanes: dict[LaneKey, _Lane] = {}  # with commands
        self._active: dict[LaneKey, _Lane] = {}  # of those, the ones with queues
        self._poison: dict[LaneKey, Poison] = {}
        self._next_seq = 0
        self.num_queued = 0  # commands not fully scheduled
        self._num_queued_tokens = 0

    @property
    def is_full(self) -> bool:
        """Whether more commands could not make the next step any fuller, as far as can be told at once."""
        num_lanes = len(self._active) + len(self.table)
        return num_lanes >= self.max_batch_requests or self._num_queued_tokens >= self.max_batch_tokens

    @property
    def has_work(self) -> bool:
        """Whether a step would run anything: a plan may wait for pages, and others for it."""
        return len(self.table.ready()) > 0 or any(True for _ in self._candidates())

    def is_busy(self, key: LaneKey) -> bool:
        """Whether the inferlet has unfinished commands."""
        number = self.lanes.find(key)
        return key in self._lanes or (number is not None and self._num_passes.values[number] > 0)

    def idle_lanes(self, lanes: I64) -> I64:
        """Of these inferlets those that have no unfinished commands."""
        is_idle = (self._num_passes.values[lanes] == 0) & ~self._has_commands.values[lanes]
        idle: I64 = lanes[is_idle]
        return idle

    # --- in --------------------------------------------------------------------------------------

    def introduce(self, key: LaneKey, tenant: str) -> None:
        """Whose inferlet it is: to be told before its commands come.  Those of nobody share one tenant."""
        self._shares.introduce(self.open(key), tenant)

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
        key = command.lane
        if self._poison and key in self._poison and not self._admit(key, command):
            return False
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(self.open(key))
            self._shares.arrive(lane.number)
            self._has_commands.values[lane.number] = True
        self._shares.unsettle(lane.number)
        command.seq = command.turn = self._next_seq
        command.arrived = now
        self._next_seq += 1
        if lane.unfinished:
            if lane.index is None:
                lane.index = PageIndex(lane.unfinished.values())
            lane.index.add(command)
        lane.unfinished[command.seq] = command
        if (held := lane.held.get(command.queue)) is not None:
            held.append(command)
        else:
            lane.queues.setdefault(command.queue, deque()).append(command)
            self._active[key] = lane
        self.num_queued += 1
        self._num_queued_tokens += command.num_tokens
        return True

    def _drop_queue(self, lane: _Lane, key: LaneKey, name: int) -> None:
        """A queue has become empty."""
        del lane.queues[name]
        if not lane.queues:
            self._active.pop(key, None)

    # --- rows ------------------------------------------------------------------------------------

    def may_be_rows(self, lanes: I64, pages: U32, kv_lens: I64) -> B1:
        """Which passes of one token may be rows, given with their inferlets and pages [n, W], 0 behind their own: those
        that wait for no other command of their inferlet, and none for them."""
        is_free: B1 = ~(self._has_commands.values[lanes] | self._is_poisoned.values[lanes])
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
        records["turn"] = np.arange(self._next_seq, self._next_seq + len(records))
        records["arrived"] = now
        self._next_seq += len(records)
        self._shares.arrive_rows(lanes)
        np.add.at(self._num_passes.values, lanes, 1)
        self.num_queued += len(records)
        self._num_queued_tokens += len(records)
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
        self.num_queued -= len(rows)
        self._num_queued_tokens -= len(rows)
        self.table.remove(rows)
        self._shares.leave(self.idle_lanes(lanes), self._now)

    def _to_row(self, plan: PlanCommand) -> None:
        lane = self._lanes[plan.lane]
        queue = lane.queues[plan.queue]
        queue.popleft()
        lane.held[plan.queue] = queue
        self._drop_queue(lane, plan.lane, plan.queue)
        record = np.array([plan.record(lane.number)], self.table.rows.dtype)
        own = Own(plan.sampler, plan.adapter, plan)
        (plan.row,) = self.table.append(record, plan.pages[None], [own], stop_column(plan.stop_tokens)).tolist()

    def leave_rows(self, rows: Sequence[int]) -> None:
        """Plans that are rows become commands again, at the heads of their queues."""
        plans = [plan for row in rows if (plan := self.table.own[row].plan) is not None]
        for plan in plans:
            plan.leave_row(self.table.rows[plan.row])
            lane = self._lanes[plan.lane]
            queue = lane.held.pop(plan.queue)
            queue.appendleft(plan)
            lane.queues[plan.queue] = queue
            self._active[plan.lane] = lane
        if plans:
            self.table.remove(np.array(rows))

    # --- out -------------------------------------------------------------------------------------

    def next_step(self, now: float) -> StepPlan:
        """Choose, and count as scheduled, what runs in the next step; empty without work."""
        self._now = now
        plan = StepPlan()
        rows = self.table.ready()
        heap = [self._candidate(command) for command in self._candidates()] if self._active else []
        if not heap and not len(rows):
            return plan
        is_room = len(rows) <= min(self.max_batch_requests, self.max_batch_tokens)
        if self._costs is not None:
            may_be_ranked = heap or self._is_ranked or not is_room or not self.table.group(rows).is_of_one_priority
            if may_be_ranked:
                rows, heap = self._without_lower(self._costs, rows, heap)
        if not heap and is_room:
            group = self.table.group(rows)
            if self._costs is None or self._shares.are_even(self._costs, group, self._now):
                self._take_rows(plan, group)
                return plan
        heapq.heapify(heap)
        bulk = self._bulk_of(rows, heap)
        waiting: list[_Candidate] = []  # their inferlets have had their share
        while heap or len(bulk):
            if len(bulk) and (not heap or heap[0][0] >= DECODE):
                if self._is_room(plan, len(bulk), heap):
                    self._take_bulk(plan, bulk)
                else:
                    self._push_rows(heap, bulk)
                bulk = rows[:0]
                continue
            one = heapq.heappop(heap)
            if not self._run(plan, one[3], heap):
                waiting.append(one)
        if waiting and not plan.copies and not plan.num_requests:
            self._run(plan, waiting[0][3], heap, is_forced=True)
        if plan.picked:
            self._take_rows(plan, self.table.group(rows if len(plan.picked) == len(rows) else np.sort(plan.picked)))
        return plan

    def _without_lower(self, costs: CostModel, rows: I64, heap: list[_Candidate]) -> tuple[I64, list[_Candidate]]:
        """Without those that wait because of their tenant's programs of higher priority (`precedence.py`)."""
        table, num_rows = self.table.rows, len(rows)
        lanes, levels = table["lane"][rows], launch_priority(table["priority"][rows]).astype(np.int64)
        commands = [one for one in heap if one[0] >= DECODE]  # copies make room for others, and who has aged goes first
        if commands:
            numbers = [self._lanes[one[3].lane].number for one in commands if isinstance(one[3], Command)]
            lanes = np.concatenate([lanes, np.array(numbers, np.int64)])
            levels = np.concatenate([levels, np.array([launch_priority(-one[1]) for one in commands])])
        self._is_ranked = bool((levels != levels[:1]).any())
        if not self._is_ranked:
            return rows, heap
        is_lower = are_lower(levels, self._shares.tenants(lanes))
        is_lower[:num_rows] &= self._now - table["arrived"][rows] < self.max_wait_s
        if not is_lower.any():
            return rows, heap
        is_prefill = np.zeros(len(lanes), bool)
        is_prefill[num_rows:] = [one[0] == PREFILL for one in commands]
        seconds = np.concatenate([self._row_seconds(rows, costs), [self._first_s(one, costs) for one in commands]])
        step_s = costs.seconds[Kind.STEP] + (costs.seconds[Kind.COMMANDS] if heap else 0.0)
        highest_s = step_s + float(seconds[~is_lower].sum())
        all_s = highest_s + float(seconds[is_lower & ~is_prefill].sum())
        is_out = is_lower if self._precedence.keeps_out(highest_s, all_s) else is_lower & is_prefill
        out = {id(one) for one, is_one_out in zip(commands, is_out[num_rows:].tolist(), strict=True) if is_one_out}
        is_in = ~is_out[:num_rows]
        return rows if is_in.all() else rows[is_in], [one for one in heap if id(one) not in out]

    def _first_s(self, one: _Candidate, costs: CostModel) -> float:
        """What a command adds to the step, if it is a decode, or about that."""
        command = one[3]
        assert isinstance(command, ForwardCommand)
        if one[0] == DECODE:
            return decode_seconds(command, costs)
        return costs.tokens(min(command.num_due, self.max_batch_tokens), command.kv_len, is_masked=command.is_masked)

    def _bulk_of(self, rows: I64, heap: list[_Candidate]) -> I64:
        """Rows that may be taken all at once: nobody's account ends before the last of them, and none has aged.  The
        others are each by itself."""
        is_bulk = np.ones(len(rows), bool) if self._costs is None else self._begin_shares(self._costs, heap, rows)
        if len(rows) and (self._now - self.table.rows["arrived"][rows] >= self.max_wait_s).any():
            is_bulk[:] = False
        if not is_bulk.all():
            self._push_rows(heap, rows[~is_bulk])
            rows = rows[is_bulk]
        return rows

    def _begin_shares(self, costs: CostModel, heap: list[_Candidate], rows: I64) -> B1:
        """Tell what each inferlet wants of the step; which rows need no account in it."""
        demands: dict[int, Demand] = {}
        for _, _, _, command in heap:
            assert isinstance(command, Command)
            demand = self._demand(demands, self._lanes[command.lane].number)
            if isinstance(command, ForwardCommand) and _is_decode(command, costs):
                demand.decode_s += decode_seconds(command, costs)
            else:
                demand.has_more = True
        lanes = self.table.rows["lane"][rows]
        seconds = self._row_seconds(rows, costs)
        self._seconds = np.zeros(len(self.table))
        self._seconds[rows] = seconds
        is_free = self._shares.are_settled(lanes)
        loose = np.flatnonzero(~is_free)
        for lane, taken_s in zip(lanes[loose].tolist(), seconds[loose].tolist(), strict=True):
            is_first = lane not in demands
            demand = self._demand(demands, lane)
            demand.decode_s += taken_s
            demand.is_row = is_first
        if demands or len(rows):
            step_s, token_s = costs.seconds[Kind.STEP], costs.decode(1, 0)
            if heap:  # it takes that whatever of them runs
                step_s += costs.seconds[Kind.COMMANDS]
            settled = np.flatnonzero(is_free)
            is_free[settled] = self._shares.begin(
                self._now, list(demands.values()), lanes[settled], seconds[settled], step_s, token_s
            )
        return is_free

    def _demand(self, demands: dict[int, Demand], lane: int) -> Demand:
        found = demands.get(lane)
        if found is None:
            found = demands[lane] = Demand(lane, self._shares.account(lane))
        return found

    def _row_seconds(self, rows: I64, costs: CostModel) -> npt.NDArray[np.float64]:
        """What each of these rows takes of a step."""
        table, s = self.table.rows, costs.seconds
        seconds = s[Kind.ATTENTION] * table["kv_len"][rows] + (s[Kind.ITEMS] + s[Kind.TOKENS] + s[Kind.ATTENTION])
        seconds += np.where(table["choice"]["temperature"][rows] > 0, s[Kind.DRAWS], s[Kind.GREEDY])
        seconds += (table["flags"][rows] & SPECIAL > 0) * s[Kind.FILTERED]
        return seconds

    def _is_room(self, plan: StepPlan, num_rows: int, heap: list[_Candidate]) -> bool:
        """Whether so many rows fit beside all decodes of `heap`."""
        decodes = [one[3] for one in heap if one[0] == DECODE]
        num_tokens = plan.num_tokens + sum(1 if isinstance(one, int) else DECODE_TOKENS for one in decodes)
        num_requests = plan.num_requests + len(decodes)
        return num_rows <= min(self.max_batch_requests - num_requests, self.max_batch_tokens - num_tokens)

    def _push_rows(self, heap: list[_Candidate], rows: I64) -> None:
        """Each row by itself."""
        if not len(rows):
            return
        table = self.table.rows
        kinds = np.where(self._now - table["arrived"][rows] >= self.max_wait_s, AGED, DECODE)
        priorities = np.where(kinds == AGED, 0, -table["priority"][rows].astype(np.int64))
        turns = table["turn"][rows]
        for one in zip(kinds.tolist(), priorities.tolist(), turns.tolist(), rows.tolist(), strict=True):
            heapq.heappush(heap, one)

    def _take_bulk(self, plan: StepPlan, rows: I64) -> None:
        """Rows that need no account are in the step."""
        if self._costs is not None:
            self._shares.charge_rows(self.table.rows["lane"][rows], self._seconds[rows])
        plan.picked += rows.tolist()
        plan.num_tokens += len(rows)

    def _take_rows(self, plan: StepPlan, group: RowGroup) -> None:
        """The step has these rows: each takes its turn anew, in the order in which they had them."""
        group.take_turns(self._next_seq, self._now)
        self._next_seq += len(group)
        plan.group = group
        plan.num_tokens += len(group) - len(plan.picked)
        if self._costs is not None:
            add_rows(plan.work, group)

    def _run(self, plan: StepPlan, command: Command | int, heap: list[_Candidate], *, is_forced: bool = False) -> bool:
        """Put what may run of the command into the step; False: its inferlet has had its share."""
        if isinstance(command, int):
            return self._pick(plan, command, is_forced=is_forced)
        lane = self._lanes[command.lane]
        if isinstance(command, MoveCommand):
            if len(plan.copies) < self.max_batch_requests and self._most_parts(plan, command) > 0:
                if not self._copy(plan, lane, command, is_forced=is_forced):
                    return False
                if command.is_scheduled:
                    self._advance(lane, command, heap)
                    self._release(lane, command, heap)
        elif isinstance(command, ForwardCommand):
            room = self.max_batch_tokens - plan.num_tokens
            if room > 0 and plan.num_requests < self.max_batch_requests:
                chunk = self._chunk(plan, lane, command, room, is_forced=is_forced)
                if chunk is None:
                    return False
                plan.forwards.append(chunk)
                plan.num_tokens += chunk.num_tokens
                self._num_queued_tokens -= command.num_done - chunk.start
                if isinstance(command, PlanCommand):
                    command.turn, command.arrived = self._next_seq, self._now
                    self._next_seq += 1
                elif chunk.is_last:
                    self._advance(lane, command, heap)
        return True

    def _pick(self, plan: StepPlan, row: int, *, is_forced: bool) -> bool:
        """Put a row into the step by itself."""
        if plan.num_tokens >= self.max_batch_tokens or plan.num_requests >= self.max_batch_requests:
            return True
        if self._costs is not None:
            account = self._shares.account(int(self.table.rows["lane"][row]))
            if self._shares.allowance(account, is_decode=True) <= 0.0 and not is_forced:
                return False
            self._shares.charge(account, float(self._seconds[row]), is_decode=True)
        plan.picked.append(row)
        plan.num_tokens += 1
        return True

    def finish(self, command: Command) -> None:
        """A scheduled command has ended, well or not."""
        lane = self._lanes.get(command.lane)
        if lane is None or lane.unfinished.pop(command.seq, None) is not command:
            return  # dropped meanwhile
        if lane.index is not None and command.num_blockers:  # it has not run: what waited for it waits for others now
            lane.index = PageIndex(lane.unfinished.values())
        elif lane.index is not None:
            lane.index.remove(command)
            for dependent in command.dependents:
                dependent.num_blockers -= 1
        self._left(command.lane, lane)

    def _left(self, key: LaneKey, lane: _Lane) -> None:
        """Commands of the inferlet have left."""
        if not lane.unfinished:
            del self._lanes[key]
            self._has_commands.values[lane.number] = False
            if not self._num_passes.values[lane.number]:
                self._shares.leave(lane.number, self._now)

    def drawn(self, plan: PlanCommand, num_due: int) -> None:
        """A plan of the step has drawn: it ends, or has other tokens to run than the `num_due` that it had.  From here
        on it is a row, if that is all that it needs."""
        self.recount(plan, num_due)
        if (poison := self._poison.get(plan.lane)) is not None:
            poison.clear(page_slots(plan.pages.tolist(), plan.kv_len, plan.kv_len + plan.num_done, self.page_size))
            self._unpoison(plan.lane)
        if plan.finish is not None:
            lane = self._lanes[plan.lane]
            self._unqueue(lane, plan)
            self.finish(plan)
        elif plan.may_be_row and plan.lane not in self._poison:
            self._to_row(plan)

    def recount(self, plan: PlanCommand, num_due: int) -> None:
        """A plan has other tokens to run than the `num_due` that it had."""
        self._num_queued_tokens += plan.num_due - num_due

    def extend(self, plan: PlanCommand, pages: U32) -> None:
        """A plan gets more pages."""
        lane = self._lanes[plan.lane]
        if lane.index is not None:
            lane.index.extend(plan, pages.tolist())
        plan.extend(pages)
        if plan.row >= 0:
            self.table.extend(plan.row, pages)

    def fail(self, command: Command) -> list[Command]:
        """A scheduled command has failed: it leaves, with all later ones that read what it was to write.

        Returns those others, in order of arrival, for the caller to answer; all are marked `is_over`.
        """
        if command.is_over:
            return []
        lane = self._lanes[command.lane]
        self.leave_rows([one.row for one in lane.unfinished.values() if isinstance(one, PlanCommand) and one.row >= 0])
        poison = self._poisoned(command.lane)
        poison.add(command)
        later = [c for c in lane.unfinished.values() if c.seq > command.seq]
        doomed = [c for c in later if not poison.admit(c)]
        self._unpoison(command.lane)
        for one in (command, *doomed):
            one.is_over = True
            del lane.unfinished[one.seq]
        self._drop_over(command.lane, lane)
        if lane.index is not None:
            lane.index = PageIndex(lane.unfinished.values())
        self._left(command.lane, lane)
        return doomed

    def fail_pass(self, row: int) -> None:
        """A pass that is a row has failed: what reads its slot must not run."""
        record = self.table.rows[row]
        page, offset = divmod(int(record["kv_len"]), self.page_size)
        key = self.lanes.key(int(record["lane"]))
        self._poisoned(key).add_slots({int(self.table.pages[row, page]): 1 << offset})

    def _poisoned(self, key: LaneKey) -> Poison:
        self._is_poisoned.values[self.open(key)] = True
        return self._poison.setdefault(key, Poison(self.page_size))

    def _unpoison(self, key: LaneKey) -> None:
        """Forget the poison if nothing is left of it."""
        if not self._poison[key]:
            del self._poison[key]
            self._is_poisoned.values[self.open(key)] = False

    def _drop_over(self, key: LaneKey, lane: _Lane) -> None:
        """Take those that are over out of the inferlet's queues."""
        for name, queue in list(lane.queues.items()):
            for one in queue:
                if one.is_over:
                    self._uncount(one)
            lane.queues[name] = deque(one for one in queue if not one.is_over)
            if not lane.queues[name]:
                self._drop_queue(lane, key, name)

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
            self.num_queued -= len(passes)
            self._num_queued_tokens -= len(passes)
            runs = [plan for row in rows.tolist() if (plan := self.table.own[row].plan) is not None]
            self.table.remove(rows)
            for plan in runs:
                plan.row = -1
                self.num_queued -= 1
                self._num_queued_tokens -= 1
        for key, number in zip(keys, numbers.tolist(), strict=True):
            self._poison.pop(key, None)
            self._active.pop(key, None)
            lane = self._lanes.pop(key, None)
            if lane is not None:
                dropped += lane.unfinished.values()
                for queue in (*lane.queues.values(), *lane.held.values()):
                    for command in queue:
                        self._uncount(command)
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

    # --- inside ----------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[Command]:
        """Heads of queues that may run."""
        for lane in self._active.values():
            for queue in lane.queues.values():
                if not queue[0].num_blockers and queue[0].is_ready:
                    yield queue[0]

    def _candidate(self, command: Command) -> _Candidate:
        if self._now - command.arrived >= self.max_wait_s:
            return AGED, 0, command.turn, command
        kind = COPY if command.is_copy else DECODE if command.num_due <= DECODE_TOKENS else PREFILL
        return kind, -command.priority, command.turn, command

    def _most_parts(self, plan: StepPlan, command: MoveCommand) -> int:
        """How much of it may be in the step, whatever it costs."""
        is_swap = isinstance(command, SwapCommand)
        return self.max_swap_pages - plan.num_swapped if is_swap else max(command.num_parts, 1)

    def _copy(self, plan: StepPlan, lane: _Lane, command: MoveCommand, *, is_forced: bool) -> bool:
        """Put parts of the copy or swap into the step; False: its inferlet has had its share."""
        most = self._most_parts(plan, command)
        if self._costs is None:
            num_parts = command.schedule(most)
        else:
            account = self._shares.account(lane.number)
            seconds = self._shares.allowance(account, is_decode=False)
            if seconds <= 0.0 and not is_forced:
                return False
            each = self._costs.seconds[command.cost]
            num_parts = command.schedule(max(int(min(seconds / each, most)), 1))
            plan.work[Kind.COMMANDS] = 1.0
            plan.work[command.cost] += num_parts
            self._shares.charge(account, num_parts * each, is_decode=False)
        if isinstance(command, SwapCommand):
            plan.num_swapped += num_parts
        plan.copies.append(command)
        return True

    def _chunk(
        self, plan: StepPlan, lane: _Lane, command: ForwardCommand, room: int, *, is_forced: bool
    ) -> Chunk | None:
        """What of the command goes into the step, with `room` for tokens; None: its inferlet has had its share."""
        costs = self._costs
        if costs is None:
            return whole(command, room)
        is_decode, account = _is_decode(command, costs), self._shares.account(lane.number)
        seconds = self._shares.allowance(account, is_decode=is_decode)
        if seconds <= 0.0 and not is_forced:
            return None
        chunk = cut(command, room, seconds, costs)
        self._shares.charge(account, add_chunk(plan.work, chunk, costs), is_decode=is_decode)
        return chunk

    def _advance(self, lane: _Lane, command: Command, heap: list[_Candidate]) -> None:
        """The command is fully scheduled: the next of its queue may join the step."""
        queue = lane.queues[command.queue]
        queue.popleft()
        self.num_queued -= 1
        if not queue:
            self._drop_queue(lane, command.lane, command.queue)
        elif not queue[0].num_blockers and queue[0].is_ready:
            heapq.heappush(heap, self._candidate(queue[0]))

    def _release(self, lane: _Lane, copy: MoveCommand, heap: list[_Candidate]) -> None:
        """A copy will have run before the forwards of its step: what waits for it alone may join."""
        for command in copy.dependents:
            command.num_blockers -= 1
            queue = lane.queues.get(command.queue)  # none for a plan that was stopped while it waited
            if not command.num_blockers and command.is_ready and queue is not None and queue[0] is command:
                heapq.heappush(heap, self._candidate(command))
        copy.dependents.clear()

    def _admit(self, key: LaneKey, command: Command) -> bool:
        is_admitted = self._poison[key].admit(command)
        self._unpoison(key)
        return is_admitted

    def _unqueue(self, lane: _Lane, command: Command) -> None:
        queue = lane.queues.get(command.queue)
        if queue is not None and command in queue:
            queue.remove(command)
            self._uncount(command)
            if not queue:
                self._drop_queue(lane, command.lane, command.queue)

    def _uncount(self, command: Command) -> None:
        self.num_queued -= 1
        self._num_queued_tokens -= command.num_tokens - command.num_done


def _is_decode(command: ForwardCommand, costs: CostModel) -> bool:
    """Whether it takes part in every step: a few tokens, whose outputs take less than a step does."""
    if command.num_due > DECODE_TOKENS:
        return False
    return not command.outputs or command.seconds_of_outputs(costs.output) <= costs.bare
