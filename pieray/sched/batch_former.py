"""Forming a step: whose turn it is, and how much of each goes into the batch.

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
* Rows are decodes like others; they are taken all at once if all of them fit and nobody takes more than a share, else
  each by itself.
* Commands join rows of other inferlets in as few steps as are worth it (`gate.py`), if none has another priority.
"""

from __future__ import annotations

import heapq
from typing import TypeAlias

import numpy as np

from pieray.arrays import F64, I64, Bools
from pieray.sched.accounts import Account, Demand
from pieray.sched.chunks import Chunk, add_chunk, add_rows, cut, decode_seconds, output_seconds, program_seconds, whole
from pieray.sched.commands import Command, ForwardCommand, MoveCommand
from pieray.sched.costs import CostModel, Kind
from pieray.sched.gate import Gate
from pieray.sched.kept_rows import KeptRows
from pieray.sched.page_moves import PageMove
from pieray.sched.plans import PlanCommand
from pieray.sched.precedence import Precedence, are_lower
from pieray.sched.queues import CommandQueues, InferletQueues
from pieray.sched.shares import Shares
from pieray.sched.step_plan import StepLimits, StepPlan
from pieray.sched.table import SPECIAL, DecodeTable, RowGroup
from pieray.urgency import launch_priority

DECODE_TOKENS = 16
"""A pass of so few tokens is a decode: one token, or the drafts of one."""
FEW_ROWS = 4
"""Of an inferlet, which are looked at one by one."""
AGED, COPY, JOINING, DECODE, PREFILL = range(5)
"""Classes, in the order in which they are given room; commands that have waited to join rows of others come before
these (`gate.py`)."""

_Candidate: TypeAlias = tuple[int, int, int, Command | int]  # class, minus priority, order of arrival, command or row


class BatchFormer:
    """Takes from queues and table what runs next; without `costs`, nobody is held to a share."""

    def __init__(
        self, queues: CommandQueues, table: DecodeTable, shares: Shares, limits: StepLimits, costs: CostModel | None
    ) -> None:
        self.costs = costs
        self._queues = queues
        self._table = table
        self._shares = shares
        self._limits = limits
        self._precedence = Precedence()
        self._is_ranked = False  # whether candidates of the last step had several priorities, as far as it was looked
        self._now = 0.0  # of the last step
        self._seconds = np.zeros(0)  # what each row of the table takes, where accounts are looked at
        self._kept = KeptRows()
        self._are_lower_out = False  # of the last step that was looked at
        self._gate = Gate()
        self._joining: list[Account] = []  # of who has commands in this step beside rows of others, if they are let in

    def next_step(self, now: float) -> StepPlan:
        """Choose, and count as scheduled, what runs in the next step; empty without work."""
        self._now = now
        plan = StepPlan()
        rows = self._table.ready()
        changes = self._table.num_changes, self._queues.num_opened
        if (kept := self._kept.take(rows, changes, self._others_stay_out)) is not None:
            self._gate.passed()
            self._take_rows(plan, kept)
            return plan
        ready = rows
        heap = self._commands(is_beside_rows=len(rows) > 0)
        if not heap and not len(rows):
            return plan
        is_room = len(rows) <= min(self._limits.max_batch_requests, self._limits.max_batch_tokens)
        if self.costs is not None:
            may_be_ranked = heap or self._is_ranked or not is_room or not self._table.group(rows).is_of_one_priority
            if may_be_ranked:
                rows, heap = self._without_lower(self.costs, rows, heap)
        if not heap and is_room:
            group = self._table.group(rows)
            if self.costs is None or self._shares.are_even(self.costs, group, self._now):
                self._gate.passed()
                self._take_rows(plan, group)
                self._keep(plan, ready, changes, is_charged=False)
                return plan
        heapq.heapify(heap)
        waiting = self._fill(plan, rows, heap)
        self._pay(plan)
        if plan.picked:
            self._take_rows(plan, self._table.group(rows if len(plan.picked) == len(rows) else np.sort(plan.picked)))
            has_commands = plan.copies or plan.forwards or any(isinstance(one[3], Command) for one in waiting)
            if self.costs is not None and not has_commands:
                self._keep(plan, ready, changes, is_charged=True)
        return plan

    def _keep(self, plan: StepPlan, ready: I64, changes: tuple[int, int], *, is_charged: bool) -> None:
        """The rows of the step are in the next ones too, unless others come to be in every other one."""
        if plan.group is not None and len(plan.group) < len(ready) and self._is_ranked == self._are_lower_out:
            self._kept.keep(plan.group, ready, changes, is_charged=is_charged)

    def _fill(self, plan: StepPlan, rows: I64, heap: list[_Candidate]) -> list[_Candidate]:
        """Put into the step what has its turn; those whose inferlets have had their share."""
        bulk = self._bulk_of(rows, heap)
        waiting: list[_Candidate] = []
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
        return waiting

    def _others_stay_out(self) -> bool:
        """Whether those that rows were chosen from, and commands, are not in the next step either."""
        if self._are_lower_out:
            return self._precedence.keeps_out_again()
        return not self._queues.num_active or self._gate.stays_closed(self._queues.num_opened)

    def _commands(self, *, is_beside_rows: bool) -> list[_Candidate]:
        """Those that may be in the step, as far as it is looked."""
        self._joining = []
        if not self._queues.num_active or (is_beside_rows and self._gate.stays_closed(self._queues.num_opened)):
            return []
        return [self._candidate(command) for command in self._queues.heads()]

    def _pay(self, plan: StepPlan) -> None:
        """Inferlets whose commands have joined rows of others pay for that, and wait till they may again."""
        if self._joining and (plan.copies or plan.forwards):
            commands = (*plan.copies, *(chunk.command for chunk in plan.forwards))
            numbers = {self._queues.by_inferlet[command.lane].number for command in commands}
            self._shares.pay([self._shares.account(number) for number in numbers])
            self._gate.joined(self._shares.steps_until(self._joining, 0), self._queues.num_opened)

    def _without_lower(self, costs: CostModel, rows: I64, heap: list[_Candidate]) -> tuple[I64, list[_Candidate]]:
        """Without those that wait because of their tenant's programs of higher priority (`precedence.py`)."""
        table, num_rows = self._table.rows, len(rows)
        lanes, levels = table["lane"][rows], launch_priority(table["priority"][rows]).astype(np.int64)
        commands = [one for one in heap if one[0] >= DECODE]  # copies make room for others, and who has aged goes first
        if commands:
            numbers = [self._queues.by_inferlet[one[3].lane].number for one in commands if isinstance(one[3], Command)]
            lanes = np.concatenate([lanes, np.array(numbers, np.int64)])
            levels = np.concatenate([levels, np.array([launch_priority(-one[1]) for one in commands])])
        self._is_ranked, self._are_lower_out = bool((levels != levels[:1]).any()), False
        if not self._is_ranked:
            return rows, heap
        is_lower = are_lower(levels, self._shares.tenants(lanes))
        is_lower[:num_rows] &= self._now - table["arrived"][rows] < self._limits.max_wait_s
        if not is_lower.any():
            return rows, heap
        is_prefill = np.zeros(len(lanes), bool)
        is_prefill[num_rows:] = [one[0] == PREFILL for one in commands]
        seconds = np.concatenate([self._row_seconds(rows, costs), [self._first_s(one, costs) for one in commands]])
        step_s, commands_s = costs.seconds[Kind.STEP], costs.seconds[Kind.COMMANDS]
        has_commands = len(heap) > len(commands) or not is_lower[num_rows:].all()  # those that stay, in any case
        highest_s = step_s + has_commands * commands_s + float(seconds[~is_lower].sum())
        all_s = highest_s + float(seconds[is_lower & ~is_prefill].sum())
        if not has_commands and not is_prefill[num_rows:].all():
            all_s += commands_s
        self._are_lower_out = self._precedence.keeps_out(highest_s, all_s)
        is_out = is_lower if self._are_lower_out else is_lower & is_prefill
        out = {id(one) for one, is_one_out in zip(commands, is_out[num_rows:].tolist(), strict=True) if is_one_out}
        is_in = ~is_out[:num_rows]
        return rows if is_in.all() else rows[is_in], [one for one in heap if id(one) not in out]

    def _first_s(self, one: _Candidate, costs: CostModel) -> float:
        """What a command adds to the step, if it is a decode, or about that."""
        command = one[3]
        assert isinstance(command, ForwardCommand)
        if one[0] == DECODE:
            return decode_seconds(command, costs)
        return costs.tokens(
            min(command.num_due, self._limits.max_batch_tokens), command.kv_len, is_masked=command.is_masked
        )

    def _bulk_of(self, rows: I64, heap: list[_Candidate]) -> I64:
        """Rows that may be taken all at once: nobody's account ends before the last of them, and none has aged.  The
        others are each by itself."""
        is_bulk = np.ones(len(rows), bool) if self.costs is None else self._begin_shares(self.costs, heap, rows)
        if len(rows) and (self._now - self._table.rows["arrived"][rows] >= self._limits.max_wait_s).any():
            is_bulk[:] = False
        if not is_bulk.all():
            self._push_rows(heap, self._within_shares(rows[~is_bulk]))
            rows = rows[is_bulk]
        return rows

    def _within_shares(self, rows: I64) -> I64:
        """Of these rows, as many of each inferlet as it may have in the step, and one: those whose turns come first."""
        table = self._table.rows
        if self.costs is None or len(rows) <= FEW_ROWS or np.bincount(table["lane"][rows]).max() <= FEW_ROWS:
            return rows
        is_young = self._now - table["arrived"][rows] < self._limits.max_wait_s
        priorities = np.where(is_young, -table["priority"][rows].astype(np.int64), 0)
        rows = rows[np.lexsort((table["turn"][rows], priorities, is_young))]
        lanes = table["lane"][rows]
        found = []
        for lane in np.unique(lanes).tolist():
            own = rows[lanes == lane]
            seconds = self._shares.allowance(self._shares.account(lane), is_decode=False, is_row=True)
            found.append(own[: int(np.searchsorted(np.cumsum(self._seconds[own]), seconds)) + 2])
        return np.concatenate(found)

    def _begin_shares(self, costs: CostModel, heap: list[_Candidate], rows: I64) -> Bools:
        """Tell what each inferlet wants of the step; which rows need no account in it."""
        self._shares.repeat(self._kept.take_uncharged())
        demands: dict[int, Demand] = {}
        for _, _, _, command in heap:
            assert isinstance(command, Command)
            demand = self._demand(demands, self._queues.by_inferlet[command.lane].number)
            if isinstance(command, ForwardCommand) and _is_decode(command, costs):
                demand.decode_s += decode_seconds(command, costs)
            else:
                demand.has_more = True
        lanes = self._table.rows["lane"][rows]
        seconds = self._row_seconds(rows, costs)
        self._seconds = np.zeros(len(self._table))
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
            wanting = [self._queues.by_inferlet[one[3].lane].number for one in heap if isinstance(one[3], Command)]
            is_beside = bool(heap) and self._is_gated(wanting, lanes)
            if heap and not is_beside:  # as all who want something have it
                step_s += costs.seconds[Kind.COMMANDS]
            settled = np.flatnonzero(is_free)
            is_free[settled] = self._shares.begin(
                self._now,
                list(demands.values()),
                lanes[settled],
                seconds[settled],
                step_s,
                token_s,
                fee_s=costs.seconds[Kind.COMMANDS] if is_beside else 0.0,
                num_steps=1 + self._gate.take_passed(),
            )
            if is_beside:
                self._joining = [demands[lane].account for lane in set(wanting)]
                if (num_steps := self._shares.steps_until(self._joining, self._gate.num_waited)) > 0:
                    self._gate.keep_out(num_steps, self._queues.num_opened)
                    heap.clear()
                heap[:] = [self._joined(one) for one in heap]
                heapq.heapify(heap)
        return is_free

    def _is_gated(self, wanting: list[int], lanes: I64) -> bool:
        """Whether those that have commands pay for joining the rows of `lanes`; see `gate.py`."""
        return not self._is_ranked and not set(wanting).issuperset(lanes.tolist())

    def _joined(self, one: _Candidate) -> _Candidate:
        """The same, ahead of rows if it may join them."""
        kind, priority, turn, command = one
        assert isinstance(command, Command)
        account = self._shares.account(self._queues.by_inferlet[command.lane].number)
        return (min(kind, JOINING), priority, turn, command) if account.may_join else one

    def _demand(self, demands: dict[int, Demand], lane: int) -> Demand:
        found = demands.get(lane)
        if found is None:
            found = demands[lane] = Demand(lane, self._shares.account(lane))
        return found

    def _row_seconds(self, rows: I64, costs: CostModel) -> F64:
        """What each of these rows takes of a step."""
        table, s = self._table.rows, costs.seconds
        seconds = s[Kind.ATTENTION] * table["kv_len"][rows] + (s[Kind.ITEMS] + s[Kind.TOKENS] + s[Kind.ATTENTION])
        seconds += np.where(table["choice"]["temperature"][rows] > 0, s[Kind.DRAWS], s[Kind.GREEDY])
        seconds += (table["flags"][rows] & SPECIAL > 0) * s[Kind.FILTERED]
        seconds += table["work"][rows] * (s[Kind.PROGRAMS] / 1e6)
        return seconds

    def _is_room(self, plan: StepPlan, num_rows: int, heap: list[_Candidate]) -> bool:
        """Whether so many rows fit beside all decodes of `heap`."""
        decodes = [one[3] for one in heap if one[0] == DECODE]
        num_tokens = plan.num_tokens + sum(1 if isinstance(one, int) else DECODE_TOKENS for one in decodes)
        num_requests = plan.num_requests + len(decodes)
        return num_rows <= min(
            self._limits.max_batch_requests - num_requests, self._limits.max_batch_tokens - num_tokens
        )

    def _push_rows(self, heap: list[_Candidate], rows: I64) -> None:
        """Each row by itself."""
        if not len(rows):
            return
        table = self._table.rows
        kinds = np.where(self._now - table["arrived"][rows] >= self._limits.max_wait_s, AGED, DECODE)
        priorities = np.where(kinds == AGED, 0, -table["priority"][rows].astype(np.int64))
        turns = table["turn"][rows]
        for one in zip(kinds.tolist(), priorities.tolist(), turns.tolist(), rows.tolist(), strict=True):
            heapq.heappush(heap, one)

    def _take_bulk(self, plan: StepPlan, rows: I64) -> None:
        """Rows that need no account are in the step."""
        if self.costs is not None:
            self._shares.charge_rows(self._table.rows["lane"][rows], self._seconds[rows])
        plan.picked += rows.tolist()
        plan.num_tokens += len(rows)

    def _take_rows(self, plan: StepPlan, group: RowGroup) -> None:
        """The step has these rows: each takes its turn anew, in the order in which they had them."""
        group.take_turns(self._queues.take_turns(len(group)), self._now)
        plan.group = group
        plan.num_tokens += len(group) - len(plan.picked)
        if self.costs is not None:
            add_rows(plan.work, group)

    def _run(self, plan: StepPlan, command: Command | int, heap: list[_Candidate], *, is_forced: bool = False) -> bool:
        """Put what may run of the command into the step; False: its inferlet has had its share."""
        if isinstance(command, int):
            return self._pick(plan, command, is_forced=is_forced)
        lane = self._queues.by_inferlet[command.lane]
        if isinstance(command, MoveCommand):
            if len(plan.copies) < self._limits.max_batch_requests and self._most_parts(plan, command) > 0:
                if not self._copy(plan, lane, command, is_forced=is_forced):
                    return False
                if command.is_scheduled:
                    self._advance(lane, command, heap)
                    self._release(lane, command, heap)
        elif isinstance(command, ForwardCommand):
            room = self._limits.max_batch_tokens - plan.num_tokens
            if room > 0 and plan.num_requests < self._limits.max_batch_requests:
                chunk = self._chunk(plan, lane, command, room, is_forced=is_forced)
                if chunk is None:
                    return False
                plan.forwards.append(chunk)
                plan.num_tokens += chunk.num_tokens
                self._queues.count(0, chunk.start - command.num_done)
                if isinstance(command, PlanCommand):
                    command.turn, command.arrived = self._queues.take_turns(1), self._now
                elif chunk.is_last:
                    self._advance(lane, command, heap)
        return True

    def _pick(self, plan: StepPlan, row: int, *, is_forced: bool) -> bool:
        """Put a row into the step by itself."""
        if plan.num_tokens >= self._limits.max_batch_tokens or plan.num_requests >= self._limits.max_batch_requests:
            return True
        if self.costs is not None:
            account = self._shares.account(int(self._table.rows["lane"][row]))
            if self._shares.allowance(account, is_decode=True, is_row=True) <= 0.0 and not is_forced:
                return False
            self._shares.charge(account, float(self._seconds[row]), is_decode=True)
        plan.picked.append(row)
        plan.num_tokens += 1
        return True

    def _candidate(self, command: Command) -> _Candidate:
        if self._now - command.arrived >= self._limits.max_wait_s:
            return AGED, 0, command.turn, command
        kind = COPY if command.is_copy else DECODE if command.num_due <= DECODE_TOKENS else PREFILL
        return kind, -command.priority, command.turn, command

    def _most_parts(self, plan: StepPlan, command: MoveCommand) -> int:
        """How much of it may be in the step, whatever it costs."""
        is_swap = isinstance(command, PageMove)
        return self._limits.max_swap_pages - plan.num_swapped if is_swap else max(command.num_parts, 1)

    def _copy(self, plan: StepPlan, lane: InferletQueues, command: MoveCommand, *, is_forced: bool) -> bool:
        """Put parts of the copy or swap into the step; False: its inferlet has had its share."""
        most = self._most_parts(plan, command)
        if self.costs is None:
            num_parts = command.schedule(most)
        else:
            account = self._shares.account(lane.number)
            seconds = self._shares.allowance(account, is_decode=False)
            if seconds <= 0.0 and not is_forced:
                return False
            each = self.costs.seconds[command.cost]
            num_parts = command.schedule(max(int(min(seconds / each, most)), 1))
            plan.work[Kind.COMMANDS] = 1.0
            plan.work[command.cost] += num_parts
            self._shares.charge(account, num_parts * each, is_decode=False)
        if isinstance(command, PageMove):
            plan.num_swapped += num_parts
        plan.copies.append(command)
        return True

    def _chunk(
        self, plan: StepPlan, lane: InferletQueues, command: ForwardCommand, room: int, *, is_forced: bool
    ) -> Chunk | None:
        """What of the command goes into the step, with `room` for tokens; None: its inferlet has had its share."""
        costs = self.costs
        if costs is None:
            return whole(command, room)
        is_decode, account = _is_decode(command, costs), self._shares.account(lane.number)
        seconds = self._shares.allowance(account, is_decode=is_decode)
        if seconds <= 0.0 and not is_forced:
            return None
        chunk = cut(command, room, seconds, costs)
        self._shares.charge(account, add_chunk(plan.work, chunk, costs), is_decode=is_decode)
        return chunk

    def _advance(self, lane: InferletQueues, command: Command, heap: list[_Candidate]) -> None:
        """The command is fully scheduled: the next of its queue may join the step."""
        if (following := self._queues.advance(lane, command)) is not None:
            heapq.heappush(heap, self._candidate(following))

    def _release(self, lane: InferletQueues, copy: MoveCommand, heap: list[_Candidate]) -> None:
        """A copy will have run before the forwards of its step: what waits for it alone may join."""
        for command in self._queues.release(lane, copy):
            heapq.heappush(heap, self._candidate(command))


def _is_decode(command: ForwardCommand, costs: CostModel) -> bool:
    """Whether it takes part in every step: a few tokens, whose outputs take less than a step does."""
    if command.num_due > DECODE_TOKENS:
        return False
    if program_seconds(command, command.num_due, costs) > costs.bare:
        return False
    if not command.outputs:
        return True
    return command.seconds_of_outputs(lambda output: output_seconds(command, output, costs)) <= costs.bare
