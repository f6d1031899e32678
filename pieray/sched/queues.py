"""Commands from when they come until they end: in queues, by inferlet, and which of them may run.

No policy: whose turn it is among the heads of all queues, `batch_former.py` decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from pieray.sched.commands import Command, MoveCommand
from pieray.sched.hazards import PageIndex
from pieray.sched.lanes import LaneKey
from pieray.sched.plans import PlanCommand


class InferletQueues:
    """One inferlet's commands, but for passes that are rows."""

    __slots__ = ("held", "index", "key", "number", "queues", "unfinished")

    def __init__(self, key: LaneKey, number: int) -> None:
        self.key = key
        self.number = number
        self.queues: dict[int, deque[Command]] = {}  # not fully scheduled; none is empty
        self.held: dict[int, deque[Command]] = {}  # behind a plan that is a row
        self.unfinished: dict[int, Command] = {}  # by order of arrival: in queues, rows or in the running step
        self.index: PageIndex | None = None  # only from the second unfinished command on

    def add(self, command: Command) -> None:
        """Note it as unfinished, and what it waits for."""
        if self.unfinished:
            if self.index is None:
                self.index = PageIndex(self.unfinished.values())
            self.index.add(command)
        self.unfinished[command.seq] = command

    def remove(self, command: Command) -> bool:
        """It has ended: what waited for it alone may run.  False: it is not here, it was dropped meanwhile."""
        if self.unfinished.pop(command.seq, None) is not command:
            return False
        if self.index is not None and command.num_blockers:  # it has not run: what waited for it waits for others now
            self.index = PageIndex(self.unfinished.values())
        elif self.index is not None:
            self.index.remove(command)
            for dependent in command.dependents:
                dependent.num_blockers -= 1
        return True

    def drop(self, commands: list[Command]) -> None:
        """These are over, and will not have run: mark them, and find anew who waits for whom."""
        for one in commands:
            one.is_over = True
            del self.unfinished[one.seq]
        if self.index is not None:
            self.index = PageIndex(self.unfinished.values())

    def rows(self) -> list[int]:
        """Rows of the decode table that are its plans."""
        return [one.row for one in self.unfinished.values() if isinstance(one, PlanCommand) and one.row >= 0]


class CommandQueues:
    """The queues of all inferlets that have commands, the order in which these came, and how many wait.

    The counts take in passes that are rows, which `count` tells of.
    """

    def __init__(self) -> None:
        self.by_inferlet: dict[LaneKey, InferletQueues] = {}  # with commands
        self.num_commands = 0  # not fully scheduled
        self.num_tokens = 0  # of those
        self.num_opened = 0  # times that an inferlet has come to have queues
        self._active: dict[LaneKey, InferletQueues] = {}  # of `by_inferlet`, those with queues
        self._next_turn = 0

    @property
    def num_active(self) -> int:
        """Inferlets that have queues."""
        return len(self._active)

    def open(self, key: LaneKey, number: int) -> InferletQueues:
        """For an inferlet that has had no commands."""
        found = self.by_inferlet[key] = InferletQueues(key, number)
        return found

    def close(self, key: LaneKey) -> list[Command]:
        """The inferlet has ended: forget its commands; returns the unfinished ones."""
        self._active.pop(key, None)
        lane = self.by_inferlet.pop(key, None)
        if lane is None:
            return []
        for queue in (*lane.queues.values(), *lane.held.values()):
            for command in queue:
                self._uncount(command)
        return list(lane.unfinished.values())

    def take_turns(self, count: int) -> int:
        """The next `count` numbers in the order of arrival are taken; the first of them."""
        first = self._next_turn
        self._next_turn += count
        return first

    def count(self, num_commands: int, num_tokens: int) -> None:
        """So many more of them wait, or fewer."""
        self.num_commands += num_commands
        self.num_tokens += num_tokens

    def heads(self) -> Iterator[Command]:
        """Heads of queues that may run."""
        for lane in self._active.values():
            for queue in lane.queues.values():
                if not queue[0].num_blockers and queue[0].is_ready:
                    yield queue[0]

    # --- commands come and go --------------------------------------------------------------------

    def append(self, lane: InferletQueues, command: Command, now: float) -> None:
        """A command comes."""
        command.seq = command.turn = self.take_turns(1)
        command.arrived = now
        lane.add(command)
        if (held := lane.held.get(command.queue)) is not None:
            held.append(command)
        else:
            lane.queues.setdefault(command.queue, deque()).append(command)
            self._activate(lane)
        self.count(1, command.num_tokens)

    def advance(self, lane: InferletQueues, command: Command) -> Command | None:
        """The command is fully scheduled; the next of its queue, if that may run."""
        queue = lane.queues[command.queue]
        queue.popleft()
        self.num_commands -= 1
        if not queue:
            self._drop_queue(lane, command.queue)
        elif not queue[0].num_blockers and queue[0].is_ready:
            return queue[0]
        return None

    def release(self, lane: InferletQueues, copy: MoveCommand) -> list[Command]:
        """A copy will have run before the forwards of its step; heads of queues that waited for it alone."""
        free = []
        for command in copy.dependents:
            command.num_blockers -= 1
            queue = lane.queues.get(command.queue)  # none for a plan that was stopped while it waited
            if not command.num_blockers and command.is_ready and queue is not None and queue[0] is command:
                free.append(command)
        copy.dependents.clear()
        return free

    def unqueue(self, lane: InferletQueues, command: Command) -> None:
        """The command runs no more, if it waits in a queue."""
        queue = lane.queues.get(command.queue)
        if queue is not None and command in queue:
            queue.remove(command)
            self._uncount(command)
            if not queue:
                self._drop_queue(lane, command.queue)

    def drop_over(self, lane: InferletQueues) -> None:
        """Take those that are over out of the inferlet's queues."""
        for name, queue in list(lane.queues.items()):
            for one in queue:
                if one.is_over:
                    self._uncount(one)
            lane.queues[name] = deque(one for one in queue if not one.is_over)
            if not lane.queues[name]:
                self._drop_queue(lane, name)

    # --- plans that are rows ---------------------------------------------------------------------

    def hold(self, lane: InferletQueues, plan: PlanCommand) -> None:
        """The plan, head of its queue, becomes a row: the others wait behind it."""
        queue = lane.queues[plan.queue]
        queue.popleft()
        lane.held[plan.queue] = queue
        self._drop_queue(lane, plan.queue)

    def resume(self, plan: PlanCommand) -> None:
        """It is a row no more, but the head of its queue again."""
        lane = self.by_inferlet[plan.lane]
        queue = lane.held.pop(plan.queue)
        queue.appendleft(plan)
        lane.queues[plan.queue] = queue
        self._activate(lane)

    # --- inside ----------------------------------------------------------------------------------

    def _activate(self, lane: InferletQueues) -> None:
        """The inferlet has queues (again)."""
        if lane.key not in self._active:
            self._active[lane.key] = lane
            self.num_opened += 1

    def _drop_queue(self, lane: InferletQueues, name: int) -> None:
        """A queue has become empty."""
        del lane.queues[name]
        if not lane.queues:
            self._active.pop(lane.key, None)

    def _uncount(self, command: Command) -> None:
        self.num_commands -= 1
        self.num_tokens -= command.num_tokens - command.num_done
