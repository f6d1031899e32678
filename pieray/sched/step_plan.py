"""One step as the scheduler gives it out, and what a step holds at most."""

from __future__ import annotations

from dataclasses import dataclass, field

from pieray.sched.chunks import Chunk
from pieray.sched.commands import MoveCommand
from pieray.sched.costs import Work, no_work
from pieray.sched.table import RowGroup


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


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What a step holds at most, and how long a command waits before it goes first."""

    max_batch_tokens: int
    max_batch_requests: int
    max_wait_s: float = 1.0
    max_swap_pages: int = 256
