"""What runs in the next step: order, hazards, budgets, priorities.  No tensors, no sockets, no clock of its own.

* Commands of one queue run in order of arrival: none runs in an earlier step than one before it.  Those that
  do not conflict may share a step, so that one queue can carry a whole beam.
* Commands of one inferlet that conflict on a page run in order of arrival, whatever their queues.
* Copies run at the start of the step; a forward that depends on a copy may run in the same step.
* Decodes (at most DECODE_TOKENS tokens) come first, prefills share what is left of the token budget and are
  cut where it ends.  Within each: higher priority first, then first come, first served.
* Nothing starves: a command that has waited for `max_wait_s` goes before all that arrived later, whatever
  their kind and priority.  So it waits at most `max_wait_s`, plus the steps for what arrived before it.
* Work-conserving: whatever may run and fits in the budgets does.
* A plan stays at the head of its queue from step to step.  Each step's tokens count as having just arrived.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from pieray.sched.commands import U32, Command, CopyCommand, ForwardCommand, LaneKey, page_slots
from pieray.sched.hazards import PageIndex, Poison
from pieray.sched.plans import PlanCommand

DECODE_TOKENS = 16
"""A pass of so few tokens is a decode: one token, or the drafts of one."""

_Candidate: TypeAlias = tuple[int, int, int, Command]  # class, minus priority, order of arrival


@dataclass(slots=True)
class StepPlan:
    """One step: `copies` in order, then all `forwards`, each (command, first token, number of tokens)."""

    copies: list[CopyCommand] = field(default_factory=list)
    forwards: list[tuple[ForwardCommand, int, int]] = field(default_factory=list)
    num_tokens: int = 0


class _Lane:
    """One inferlet's commands."""

    __slots__ = ("index", "queues", "unfinished")

    def __init__(self) -> None:
        self.queues: dict[int, deque[Command]] = {}  # not fully scheduled; none is empty
        self.unfinished: dict[int, Command] = {}  # by order of arrival: in queues or in the running step
        self.index: PageIndex | None = None  # only from the second unfinished command on


class Scheduler:
    """Holds commands until a step takes them.  `next_step` and then `finish` for each command that has ended."""

    def __init__(self, page_size: int, max_batch_tokens: int, max_batch_requests: int, max_wait_s: float = 1.0) -> None:
        self.page_size = page_size
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_requests = max_batch_requests
        self.max_wait_s = max_wait_s
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

    def submit(self, command: Command, now: float) -> bool:
        """Take a command; False: what it reads was to be written by one that failed, so it must be failed too."""
        key = command.lane
        if self._poison and key in self._poison and not self._admit(key, command):
            return False
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        command.seq = command.turn = self._next_seq
        command.arrived = now
        self._next_seq += 1
        if lane.unfinished:
            if lane.index is None:
                lane.index = PageIndex()
                for first in lane.unfinished.values():
                    lane.index.add(first)
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
        plan = StepPlan()
        heap = [self._candidate(command, now) for command in self._candidates()]
        heapq.heapify(heap)
        while heap:
            command = heapq.heappop(heap)[3]
            lane = self._lanes[command.lane]
            if isinstance(command, CopyCommand):
                if len(plan.copies) < self.max_batch_requests:
                    plan.copies.append(command)
                    self._advance(lane, command, heap, now)
                    self._release(lane, command, heap, now)
            elif isinstance(command, ForwardCommand):
                is_taken = self._take(plan, command)
                if isinstance(command, PlanCommand):
                    if is_taken:
                        command.turn, command.arrived = self._next_seq, now
                        self._next_seq += 1
                elif command.num_done == command.num_tokens:
                    self._advance(lane, command, heap, now)
        return plan

    def finish(self, command: Command) -> None:
        """A scheduled command has ended, well or not."""
        lane = self._lanes.get(command.lane)
        if lane is None or lane.unfinished.pop(command.seq, None) is not command:
            return  # dropped meanwhile
        if lane.index is not None:
            lane.index.remove(command)
            for dependent in command.dependents:
                dependent.num_blockers -= 1
        if not lane.unfinished:
            del self._lanes[command.lane]

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
            self._unqueue(lane, one)
            self.finish(one)
        return doomed

    # --- the end of inferlets --------------------------------------------------------------------

    def cancel(self, peer_id: str, inferlet: int | None = None) -> list[Command]:
        """Drop all commands of an inferlet, or of all of a peer's; returns them, those of the running step included.

        All are marked `is_over`: those of the running step finish, and their results are to be discarded.
        """
        keys: list[LaneKey]
        if inferlet is None:
            keys = [key for key in {**self._lanes, **self._poison} if key[0] == peer_id]
        else:
            keys = [(peer_id, inferlet)]
        dropped: list[Command] = []
        for key in keys:
            self._poison.pop(key, None)
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

    def _take(self, plan: StepPlan, command: ForwardCommand) -> bool:
        """Put what fits of the command into the step; False: nothing does."""
        room = self.max_batch_tokens - plan.num_tokens
        if room <= 0 or len(plan.forwards) >= self.max_batch_requests:
            return False
        num_tokens = min(room, command.num_tokens - command.num_done)
        plan.forwards.append((command, command.num_done, num_tokens))
        plan.num_tokens += num_tokens
        command.num_done += num_tokens
        self._num_queued_tokens -= num_tokens
        return True

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
