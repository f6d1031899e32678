"""The bounded cohort wait: whether the next step should wait for inferlets that are about to ask again.

Stepping at once splits a group of inferlets in two halves that answer in turns, each step half full.
Waiting a fraction of a step for the rest keeps them together.  An inferlet is waited for only while its
own record says that it comes back within the cap: who is busy with tools, or has ended, costs one wait.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pieray.arrays import F64, I64
from pieray.sched.lanes import Registry

LEARNING_RATE = 0.5
"""Weight of the latest answer in an inferlet's record."""
TRUST = 0.6
"""Record from which on an inferlet is waited for: one miss is enough to lose it, one return to regain it."""
NEVER = float("-inf")


class CohortWait:
    """Told of answers, arrivals and steps; says how long to wait.  All times in seconds, monotonic.

    Inferlets are given by number, one or an array of them; one that is closed in `lanes` is not waited for.
    Arrivals are best stamped when they come in.  One that came while a step ran and is told of only after it
    is neither early nor late: it counts for the inferlet, at a quarter of the weight.
    """

    def __init__(self, lanes: Registry[Any], cap_s: float, fraction: float = 0.5) -> None:
        self._limit_s = cap_s
        self._fraction = fraction
        self.step_s = 0.0  # recent mean
        self._step_began = self._step_ended = NEVER
        self._since = lanes.column(float, NEVER)  # when it was answered, while it is not back and not late
        self._record = lanes.column(float, 1.0)  # recent share of answers after which it came back in time
        self._is_any_away = False  # False: nobody is waited for

    @property
    def cap_s(self) -> float:
        """The longest wait: the smaller of the setting and a fraction of a recent step."""
        return min(self._limit_s, self._fraction * self.step_s)

    def stepped(self, began: float, ended: float) -> None:
        """A step has run in `[began, ended)`."""
        took = ended - began
        self.step_s = 0.8 * self.step_s + 0.2 * took if self.step_s else took
        self._step_began, self._step_ended = began, ended

    def answered(self, lanes: int | I64, now: float) -> None:
        """The inferlets have all that they asked for."""
        self._since.values[lanes] = now
        self._is_any_away = True

    def arrived(self, lanes: int | I64, now: float) -> None:
        """Commands of the inferlets have come."""
        if isinstance(lanes, int) and self._since.values[lanes] == NEVER:
            return
        back = np.atleast_1d(lanes)
        since = self._since.values[back]
        if not (is_awaited := since != NEVER).all():
            back, since = back[is_awaited], since[is_awaited]
        self._since.values[back] = NEVER
        is_early = now - since <= self.cap_s
        is_hidden = ~is_early & (since <= self._step_began) & (now >= self._step_ended)
        rate = np.where(is_hidden, LEARNING_RATE / 4, LEARNING_RATE)
        self._learn(back, (is_early | is_hidden).astype(float), rate)

    def wait_s(self, now: float) -> float:
        """Seconds to wait before the next step unless a command comes first; 0: go."""
        if not self._is_any_away:
            return 0.0
        since = self._since.values
        earliest = now - self.cap_s
        late = np.flatnonzero((since <= earliest) & (since != NEVER))
        if len(late):
            since[late] = NEVER
            self._learn(late, np.zeros(len(late)), LEARNING_RATE)
        newest = since.max(where=self._record.values >= TRUST, initial=NEVER)
        if newest == NEVER:
            self._is_any_away = bool((since != NEVER).any())
            return 0.0
        return float(newest) - earliest

    def _learn(self, lanes: I64, outcome: F64, rate: float | F64) -> None:
        record = self._record.values
        record[lanes] += rate * (outcome - record[lanes])
