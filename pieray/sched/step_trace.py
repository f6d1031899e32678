"""Steps that traced inferlets have taken part in.  Nothing is noted, nor looked at, while no inferlet is traced."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from typing import Any

from pieray.sched.lanes import LaneKey
from pieray.sched.step_plan import StepPlan

MOST_STEPS = 10_000
"""Kept of one inferlet, the latest."""
MOST_KEPT = 256
"""Inferlets of which steps are kept, those that have ended included."""


class StepTrace:
    """Told of each step by the thread that steps; asked from any thread."""

    def __init__(self) -> None:
        self._watched: dict[LaneKey, tuple[int, str]] = {}
        """By peer and inferlet: the number of its lane, and the id that it is known by outside."""
        self._steps: OrderedDict[str, deque[tuple[float, ...]]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        return bool(self._watched)

    def watch(self, key: LaneKey, lane: int, instance_id: str) -> None:
        """Note the steps of an inferlet from now on, until `forget`."""
        with self._lock:
            self._watched[key] = lane, instance_id
            self._steps[instance_id] = deque(maxlen=MOST_STEPS)
            while len(self._steps) > MOST_KEPT:
                self._steps.popitem(last=False)

    def forget(self, peer_id: str, inferlet: int | None = None) -> None:
        """An inferlet of the peer, or all of them, have no more steps; those that were noted stay."""
        for key in [key for key in self._watched if key[0] == peer_id and inferlet in (None, key[1])]:
            del self._watched[key]

    def stepped(self, plan: StepPlan, began: float, ended: float) -> None:
        """A step has run in `[began, ended)`, in seconds of time.monotonic."""
        lanes = set() if plan.group is None else set(plan.group.lanes.tolist())
        keys = {command.lane for command in (*plan.copies, *(chunk.command for chunk in plan.forwards))}
        offset = time.time() - time.monotonic()
        step = began + offset, ended + offset, plan.num_requests, plan.num_tokens, len(plan.copies)
        with self._lock:
            for key, (lane, instance_id) in self._watched.items():
                if (lane in lanes or key in keys) and (steps := self._steps.get(instance_id)) is not None:
                    steps.append(step)

    def steps(self, instance_id: str) -> list[dict[str, Any]]:
        """Of an inferlet, the first one first: Unix times, and what the step had of all inferlets."""
        with self._lock:
            found = list(self._steps.get(instance_id, ()))
        names = ("began", "ended", "passes", "tokens", "copies")
        return [dict(zip(names, step, strict=True)) for step in found]
