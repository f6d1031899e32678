"""The bounded cohort wait: whether the next step should wait for inferlets that are about to ask again.

Stepping at once splits a group of inferlets in two halves that answer in turns, each step half full.
Waiting a fraction of a step for the rest keeps them together.  An inferlet is waited for only while its
own record says that it comes back within the cap: who is busy with tools, or has ended, costs one wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")

LEARNING_RATE = 0.5
"""Weight of the latest answer in an inferlet's record."""
TRUST = 0.6
"""Record from which on an inferlet is waited for: one miss is enough to lose it, one return to regain it."""


class CohortWait(Generic[K]):
    """Told of answers, arrivals and steps; says how long to wait.  All times in seconds, monotonic.

    Arrivals are best stamped when they come in.  One that came while a step ran and is told of only after it
    is neither early nor late: it counts for the inferlet, at a quarter of the weight.
    """

    def __init__(self, cap_s: float, fraction: float = 0.5) -> None:
        self._limit_s = cap_s
        self._fraction = fraction
        self._step_s = 0.0  # recent mean
        self._step_began = self._step_ended = float("-inf")
        self._record: dict[K, float] = {}  # recent share of answers after which the inferlet came back in time
        self._awaited: dict[K, float] = {}  # answered, not back and trusted: since when, oldest first
        self._away: dict[K, float] = {}  # as `_awaited`, not trusted

    @property
    def cap_s(self) -> float:
        """The longest wait: the smaller of the setting and a fraction of a recent step."""
        return min(self._limit_s, self._fraction * self._step_s)

    def stepped(self, began: float, ended: float) -> None:
        """A step has run in `[began, ended)`."""
        took = ended - began
        self._step_s = 0.8 * self._step_s + 0.2 * took if self._step_s else took
        self._step_began, self._step_ended = began, ended

    def answered(self, key: K, now: float) -> None:
        """The inferlet has all that it asked for."""
        self._awaited.pop(key, None)
        self._away.pop(key, None)
        is_trusted = self._record.setdefault(key, 1.0) >= TRUST
        (self._awaited if is_trusted else self._away)[key] = now

    def arrived(self, key: K, now: float) -> None:
        """A command of the inferlet has come."""
        since = self._awaited.pop(key, None)
        if since is None:
            since = self._away.pop(key, None)
        if since is None:
            return
        if now - since <= self.cap_s:
            self._learn(key, 1.0)
        elif since <= self._step_began and now >= self._step_ended:
            self._learn(key, 1.0, LEARNING_RATE / 4)
        else:
            self._learn(key, 0.0)

    def ended(self, key: K) -> None:
        """The inferlet is gone."""
        for table in (self._awaited, self._away, self._record):
            table.pop(key, None)

    def ended_all(self, is_gone: Callable[[K], bool]) -> None:
        """All inferlets of which `is_gone` holds, those of a dead peer, are gone."""
        for key in [key for key in self._record if is_gone(key)]:
            self.ended(key)

    def wait_s(self, now: float) -> float:
        """Seconds to wait before the next step unless a command comes first; 0: go.  O(1) amortised."""
        earliest = now - self.cap_s
        self._expire(self._awaited, earliest)
        self._expire(self._away, earliest)
        if not self._awaited:
            return 0.0
        return self._awaited[next(reversed(self._awaited))] - earliest

    def _expire(self, table: dict[K, float], earliest: float) -> None:
        """Count as late those that were answered at `earliest` or before, and are still not back."""
        late = []
        for key, since in table.items():
            if since > earliest:
                break
            late.append(key)
        for key in late:
            del table[key]
            self._learn(key, 0.0)

    def _learn(self, key: K, outcome: float, rate: float = LEARNING_RATE) -> None:
        record = self._record.get(key, 1.0)
        self._record[key] = record + rate * (outcome - record)
