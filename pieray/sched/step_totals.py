"""What steps have done since the start, and what the last one teaches about costs."""

from __future__ import annotations

from typing import Any

from pieray.sched.commands import CopyCommand
from pieray.sched.costs import CostModel, Kind, Work
from pieray.sched.step_plan import StepPlan


class StepTotals:
    """Told of each step, and of when its answers are sent; `costs`, if any, learns from that."""

    def __init__(self, costs: CostModel | None) -> None:
        self.num_failed = 0
        self._costs = costs
        self._counts = dict.fromkeys(("steps", "forwards", "copies", "tokens"), 0)
        self._busy_s = 0.0
        self._learning: tuple[Work, float] | None = None  # of the last step: what it was made of, when it began

    def stepped(self, plan: StepPlan, began: float, ended: float) -> None:
        """A step has run in `[began, ended)`, in seconds."""
        counts = self._counts
        counts["steps"] += 1
        counts["forwards"] += plan.num_requests
        counts["copies"] += sum(isinstance(command, CopyCommand) for command in plan.copies)
        counts["tokens"] += plan.num_tokens
        self._busy_s += ended - began
        self._learning = plan.work, began

    def sent(self, now: float) -> None:
        """The answers of the last step are on their way: what it has cost is known."""
        if self._costs is not None and self._learning is not None:
            work, began = self._learning
            work[Kind.STEP] = 1.0
            self._costs.learn(work, now - began)
            self._learning = None

    def stats(self) -> dict[str, Any]:
        """Totals; `mean_batch` is forwards per step.  May be called from any thread."""
        counts = dict(self._counts)
        mean_batch = counts["forwards"] / counts["steps"] if counts["steps"] else 0.0
        return {**counts, "failed": self.num_failed, "busy_s": self._busy_s, "mean_batch": mean_batch}
