"""What runs in the next step: order, hazards, shares, priorities.  No tensors, no sockets, no clock of its own.

* Commands of one queue run in order of arrival: none runs in an earlier step than one before it.  Those that
  do not conflict may share a step, so that one queue can carry a whole beam.
* Commands of one inferlet that conflict on a page run in order of arrival, whatever their queues.
* Copies run at the start of the step; a forward that depends on a copy may run in the same step.
* Decodes (at most DECODE_TOKENS tokens) come first, prefills share what is left of the token budget and are
  cut where it ends.  Within each: higher priority first, then first come, first served.
* Nothing starves: a command that has waited for `max_wait_s` goes before all that arrived later, whatever
  their kind and priority.  So it waits at most `max_wait_s`, plus the steps for what arrived before it.
* With a cost model, time is shared (`shares.py`): all of the above decides who comes first among those who have not
  had their share.  What has none left, aged or urgent, waits for the next step, and prefills and outputs are cut to
  what is left of it.
* Work-conserving: no step is empty while anything may run, and an inferlet alone has all of it.
* A plan stays at the head of its queue from step to step.  Each step's tokens count as having just arrived.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TypeAlias

from pieray.sched.chunks import Chunk, add_chunk, cut, decode_seconds, whole
from pieray.sched.commands import U32, Command, CopyCommand, ForwardCommand, LaneKey, page_slots
from pieray.sched.costs import CostModel, Kind, Work, no_work
from pieray.sched.hazards import PageIndex, Poison
from pieray.sched.plans import PlanCommand
from pieray.sched.shares import Account, Demand, Shares, Tenant

DECODE_TOKENS = 16
"""A pass of so few tokens is a decode: one token, or the drafts of one."""

_Candidate: TypeAlias = tuple[int, int, int, Command]  # class, minus priority, order of arrival


@dataclass(slots=True)
class StepPlan:
    """One step: `copies` in order, then all `forwards`.  `work` is what it is made of, if there is a cost model."""

    copies: list[CopyCommand] = field(default_factory=list)
    forwards: list[Chunk] = field(default_factory=list)
    num_tokens: int = 0
    work: Work = field(default_factory=no_work)


class _Lane:
    """One inferlet's commands."""

    __slots__ = ("account", "index", "queues", "unfinished")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.queues: dict[int, deque[Command]] = {}  # not fully scheduled; none is empty
        self.unfinished: dict[int, Command] = {}  # by order of arrival: in queues or in the running step
        self.index: PageIndex | None = None  # only from the second unfinished command on

    def only_plan(self) -> PlanCommand | None:
        """The head of its queue, if there is but one queue and that is a plan."""
        if len(self.queues) != 1:
            return None
        (queue,) = self.queues.values()
        command = queue[0]
        return command if isinstance(command, PlanCommand) else None


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
    ) -> None:
        self.page_size = page_size
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_requests = max_batch_requests
        self.max_wait_s = max_wait_s
        self._costs = costs
        self._shares = Shares()
        self._tenants: dict[LaneKey, str] = {}
        self._now = 0.0  # of the last step
        self._lanes: dict[LaneKey, _Lane] = {}
        self._poison: dict[LaneKey, Poison] = {}
        self._next_seq = 0
        self.num_queued = 0  # commands not fully scheduled
        self._num_queued_tokens = 0

    @property
    def is_full(self) -> bool:
        """Whether more commands could not make the next step any fuller, as far as can be told at once."""
        return len(self._lanes) >= self.max_batch_requests or self._num_queued_tokens >= self.max_batch_tokens

    @property
    def has_work(self) -> bool:
        """Whether a step would run anything: a plan may wait for pages, and others for it."""
        return any(True for _ in self._candidates())

    def is_busy(self, lane: LaneKey) -> bool:
        """Whether the inferlet has unfinished commands."""
        return lane in self._lanes

    # --- in --------------------------------------------------------------------------------------

    def introduce(self, lane: LaneKey, tenant: str) -> None:
        """Whose inferlet it is: to be told before its commands come.  Those of nobody share one tenant."""
        self._tenants[lane] = tenant

    def submit(self, command: Command, now: float) -> bool:
        """Take a command; False: what it reads was to be written by one that failed, so it must be failed too."""
        key = command.lane
        if self._poison and key in self._poison and not self._admit(key, command):
            return False
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(self._shares.open(key, self._tenants.get(key, "")))
        command.seq = command.turn = self._next_seq
        command.arrived = now
        self._next_seq += 1
        if lane.unfinished:
            if lane.index is None:
                lane.index = PageIndex(lane.unfinished.values())
            lane.index.add(command)
        lane.unfinished[command.seq] = command
        queue = lane.queues.get(command.queue)
        if queue is None:
            lane.queues[command.queue] = deque((command,))
        else:
            queue.append(command)
        self.num_queued += 1
        self._num_queued_tokens += command.num_tokens
        return True

    # --- out -------------------------------------------------------------------------------------

    def next_step(self, now: float) -> StepPlan:
        """Choose, and count as scheduled, what runs in the next step; empty without work."""
        self._now = now
        if (plan := self._decode_step(now)) is not None:
            return plan
        plan = StepPlan()
        heap = [self._candidate(command, now) for command in self._candidates()]
        if self._costs is not None and heap:
            self._begin_shares(self._costs, heap, now)
        heapq.heapify(heap)
        waiting: list[_Candidate] = []  # their inferlets have had their share
        while heap:
            one = heapq.heappop(heap)
            if not self._run(plan, one[3], heap, now):
                waiting.append(one)
        if waiting and not plan.copies and not plan.forwards:
            self._run(plan, waiting[0][3], heap, now, is_forced=True)
        return plan

    def _decode_step(self, now: float) -> StepPlan | None:
        """The step of plans that all decode, one of each inferlet, if it has room for them all and none of them takes
        more than its share: what `next_step` would choose otherwise, without a look at each account.  Else None."""
        heads: list[tuple[int, PlanCommand, int]] = []
        num_tokens = square = 0
        shortest, longest = 1 << 62, 0
        tenants: dict[Tenant, int] = {}
        for lane in self._lanes.values():
            command = lane.only_plan()
            num_due = command.num_tokens - command.num_done if command is not None else DECODE_TOKENS + 1
            if command is None or num_due > DECODE_TOKENS:
                return None
            if command.num_blockers or not command.is_ready:
                continue
            reach = num_due * (command.kv_len + command.num_tokens)
            shortest, longest = min(shortest, reach), max(longest, reach)
            square += reach
            num_tokens += num_due
            tenant = lane.account.tenant
            tenants[tenant] = tenants.get(tenant, 0) + 1
            heads.append((command.turn, command, num_due))
        if not 0 < len(heads) <= self.max_batch_requests or num_tokens > self.max_batch_tokens:
            return None
        most = max(tenants.values()) if len(tenants) > 1 else 1
        if self._costs is not None and not self._shares.are_even(self._costs, shortest, longest, most):
            return None
        return self._decodes(heads, num_tokens, square, now)

    def _decodes(self, heads: list[tuple[int, PlanCommand, int]], num_tokens: int, square: int, now: float) -> StepPlan:
        plan = StepPlan(num_tokens=num_tokens)
        work, forwards, seq = plan.work, plan.forwards, self._next_seq
        work[Kind.ITEMS], work[Kind.TOKENS], work[Kind.ATTENTION] = len(heads), num_tokens, square
        heads.sort(key=itemgetter(0))
        for _, command, num_due in heads:
            forwards.append(Chunk(command, command.num_done, num_due, (), False))
            command.num_done += num_due
            command.turn, command.arrived = seq, now
            seq += 1
            work[command.draw_kind] += num_due
            if command.is_filtered or command.masks:
                work[Kind.FILTERED] += num_due
        self._next_seq = seq
        self._num_queued_tokens -= num_tokens
        return plan

    def _begin_shares(self, costs: CostModel, heap: list[_Candidate], now: float) -> None:
        """Tell what each inferlet wants of the step."""
        demands: dict[LaneKey, Demand] = {}
        for _, _, _, command in heap:
            demand = demands.get(command.lane)
            if demand is None:
                demand = demands[command.lane] = Demand(self._lanes[command.lane].account, 0.0, has_more=False)
            if isinstance(command, ForwardCommand) and _is_decode(command, costs):
                demand.decode_s += decode_seconds(command, costs)
            else:
                demand.has_more = True
        self._shares.begin(now, list(demands.values()), costs.seconds[Kind.STEP], costs.decode(1, 0))

    def _run(
        self, plan: StepPlan, command: Command, heap: list[_Candidate], now: float, *, is_forced: bool = False
    ) -> bool:
        """Put what may run of the command into the step; False: its inferlet has had its share."""
        lane = self._lanes[command.lane]
        if isinstance(command, CopyCommand):
            if len(plan.copies) < self.max_batch_requests:
                if not self._copy(plan, lane, command, is_forced=is_forced):
                    return False
                self._advance(lane, command, heap, now)
                self._release(lane, command, heap, now)
        elif isinstance(command, ForwardCommand):
            room = self.max_batch_tokens - plan.num_tokens
            if room > 0 and len(plan.forwards) < self.max_batch_requests:
                chunk = self._chunk(plan, lane, command, room, is_forced=is_forced)
                if chunk is None:
                    return False
                self._take(plan, chunk)
                if isinstance(command, PlanCommand):
                    command.turn, command.arrived = self._next_seq, now
                    self._next_seq += 1
                elif chunk.is_last:
                    self._advance(lane, command, heap, now)
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
            self._shares.leave(key, self._now)

    def drawn(self, plan: PlanCommand, num_due: int) -> None:
        """A plan of the step has drawn: it ends, or has other tokens to run than the `num_due` that it had."""
        lane = self._lanes[plan.lane]
        self.recount(plan, num_due)
        if (poison := self._poison.get(plan.lane)) is not None:
            poison.clear(page_slots(plan.pages.tolist(), plan.kv_len, plan.kv_len + plan.num_done, self.page_size))
            if not poison:
                del self._poison[plan.lane]
        if plan.finish is not None:
            self._unqueue(lane, plan)
            self.finish(plan)

    def recount(self, plan: PlanCommand, num_due: int) -> None:
        """A plan has other tokens to run than the `num_due` that it had."""
        self._num_queued_tokens += plan.num_due - num_due

    def extend(self, plan: PlanCommand, pages: U32) -> None:
        """A plan gets more pages."""
        lane = self._lanes[plan.lane]
        if lane.index is not None:
            lane.index.extend(plan, pages.tolist())
        plan.extend(pages)

    def fail(self, command: Command) -> list[Command]:
        """A scheduled command has failed: it leaves, with all later ones that read what it was to write.

        Returns those others, in order of arrival, for the caller to answer; all are marked `is_over`.
        """
        if command.is_over:
            return []
        poison = self._poison.setdefault(command.lane, Poison(self.page_size))
        poison.add(command)
        lane = self._lanes[command.lane]
        later = [c for c in lane.unfinished.values() if c.seq > command.seq]
        doomed = [c for c in later if not poison.admit(c)]
        if not poison:
            del self._poison[command.lane]
        for one in (command, *doomed):
            one.is_over = True
            del lane.unfinished[one.seq]
        self._drop_over(lane)
        if lane.index is not None:
            lane.index = PageIndex(lane.unfinished.values())
        self._left(command.lane, lane)
        return doomed

    def _drop_over(self, lane: _Lane) -> None:
        """Take those that are over out of the inferlet's queues."""
        for name, queue in list(lane.queues.items()):
            over = [one for one in queue if one.is_over]
            if not over:
                continue
            for one in over:
                self._uncount(one)
            if len(over) == len(queue):
                del lane.queues[name]
            else:
                lane.queues[name] = deque(one for one in queue if not one.is_over)

    # --- the end of inferlets --------------------------------------------------------------------

    def cancel(self, peer_id: str, inferlet: int | None = None) -> list[Command]:
        """Drop all commands of an inferlet, or of all of a peer's; returns them, those of the running step included.

        All are marked `is_over`: those of the running step finish, and their results are to be discarded.
        """
        keys: list[LaneKey]
        if inferlet is None:
            keys = [key for key in {**self._lanes, **self._poison, **self._tenants} if key[0] == peer_id]
        else:
            keys = [(peer_id, inferlet)]
        dropped: list[Command] = []
        for key in keys:
            self._poison.pop(key, None)
            self._tenants.pop(key, None)
            self._shares.close(key)
            lane = self._lanes.pop(key, None)
            if lane is not None:
                dropped += lane.unfinished.values()
                for queue in lane.queues.values():
                    for command in queue:
                        self._uncount(command)
        for command in dropped:
            command.is_over = True
        return dropped

    def cancel_all(self) -> list[Command]:
        """Drop all commands of all inferlets; as `cancel`."""
        return [command for peer_id in {key[0] for key in self._lanes} for command in self.cancel(peer_id)]

    # --- inside ----------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[Command]:
        """Heads of queues that may run."""
        for lane in self._lanes.values():
            for queue in lane.queues.values():
                if not queue[0].num_blockers and queue[0].is_ready:
                    yield queue[0]

    def _candidate(self, command: Command, now: float) -> _Candidate:
        if now - command.arrived >= self.max_wait_s:
            return 0, 0, command.turn, command
        kind = 1 if command.is_copy else 2 if command.num_due <= DECODE_TOKENS else 3
        return kind, -command.priority, command.turn, command

    def _copy(self, plan: StepPlan, lane: _Lane, command: CopyCommand, *, is_forced: bool) -> bool:
        """Put the copy into the step; False: its inferlet has had its share."""
        if self._costs is not None:
            if not is_forced and self._shares.allowance(lane.account, is_decode=False) <= 0.0:
                return False
            plan.work[Kind.COPIES] += len(command.copies)
            seconds = len(command.copies) * self._costs.seconds[Kind.COPIES]
            self._shares.charge(lane.account, seconds, is_decode=False)
        plan.copies.append(command)
        return True

    def _chunk(
        self, plan: StepPlan, lane: _Lane, command: ForwardCommand, room: int, *, is_forced: bool
    ) -> Chunk | None:
        """What of the command goes into the step, with `room` for tokens; None: its inferlet has had its share."""
        costs = self._costs
        if costs is None:
            return whole(command, room)
        shares, account = self._shares, lane.account
        is_decode = _is_decode(command, costs)
        seconds = shares.allowance(account, is_decode=is_decode)
        if seconds <= 0.0 and not is_forced:
            return None
        chunk = cut(command, room, seconds, costs)
        shares.charge(account, add_chunk(plan.work, chunk, costs), is_decode=is_decode)
        return chunk

    def _take(self, plan: StepPlan, chunk: Chunk) -> None:
        plan.forwards.append(chunk)
        plan.num_tokens += chunk.num_tokens
        self._num_queued_tokens -= chunk.command.num_done - chunk.start

    def _advance(self, lane: _Lane, command: Command, heap: list[_Candidate], now: float) -> None:
        """The command is fully scheduled: the next of its queue may join the step."""
        queue = lane.queues[command.queue]
        queue.popleft()
        self.num_queued -= 1
        if not queue:
            del lane.queues[command.queue]
        elif not queue[0].num_blockers and queue[0].is_ready:
            heapq.heappush(heap, self._candidate(queue[0], now))

    def _release(self, lane: _Lane, copy: CopyCommand, heap: list[_Candidate], now: float) -> None:
        """A copy will have run before the forwards of its step: what waits for it alone may join."""
        for command in copy.dependents:
            command.num_blockers -= 1
            queue = lane.queues.get(command.queue)  # none for a plan that was stopped while it waited
            if not command.num_blockers and command.is_ready and queue is not None and queue[0] is command:
                heapq.heappush(heap, self._candidate(command, now))
        copy.dependents.clear()

    def _admit(self, key: LaneKey, command: Command) -> bool:
        poison = self._poison[key]
        is_admitted = poison.admit(command)
        if not poison:
            del self._poison[key]
        return is_admitted

    def _unqueue(self, lane: _Lane, command: Command) -> None:
        queue = lane.queues.get(command.queue)
        if queue is not None and command in queue:
            queue.remove(command)
            self._uncount(command)
            if not queue:
                del lane.queues[command.queue]

    def _uncount(self, command: Command) -> None:
        self.num_queued -= 1
        self._num_queued_tokens -= command.num_tokens - command.num_done


def _is_decode(command: ForwardCommand, costs: CostModel) -> bool:
    """Whether it takes part in every step: a few tokens, whose outputs take less than a step does."""
    if command.num_due > DECODE_TOKENS:
        return False
    return not command.outputs or command.seconds_of_outputs(costs.output) <= costs.bare
