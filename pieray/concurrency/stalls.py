"""When a process stood still (SIGSTOP, a suspended machine, a debugger), and what another process's clock says.

A request that is given up must not be carried out later, by a process that wakes up with it in its queues.  So a caller
says when it sent a request and until when it may begin, in the clock of the process that is to carry it out; that one
refuses it past that time, and if it has stood still since.
"""

from __future__ import annotations

import time

STALL_S = 1.5
"""Standing still for longer is a stall.  Whoever gives up on a silent process waits for longer than this."""


class Stalls:
    """Watches its own process: `tick` is called several times a second by a thread of it.  Thread-safe."""

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._ticked_at = time.monotonic()
        self._ended_at = 0.0

    def tick(self) -> float:
        """Note that the process runs; the seconds for which it has stood still, 0 if it has not."""
        now = time.monotonic()
        gap_s = now - self._ticked_at
        if gap_s > self._stall_s:
            self._ended_at = now  # before the tick: who looks in between sees one or the other
        self._ticked_at = now
        return gap_s if gap_s > self._stall_s else 0.0

    def is_since(self, sent_at: float) -> bool:
        """Whether it has stood still at any time since `sent_at` (of its time.monotonic)."""
        return self._ended_at > sent_at or time.monotonic() - self._ticked_at > self._stall_s


class RemoteClock:
    """The time.monotonic of another process, from what it last told; behind it by as long as its answer took."""

    def __init__(self) -> None:
        self._offset_s: float | None = None
        self._heard_at = 0.0

    @property
    def age_s(self) -> float:
        """Since it was last told; infinite before the first time."""
        return time.monotonic() - self._heard_at if self._offset_s is not None else float("inf")

    def update(self, told: float) -> None:
        """An answer that says `told` has just come."""
        self._heard_at = time.monotonic()
        self._offset_s = told - self._heard_at

    def at(self, when: float) -> float:
        """Our time `when`, on the other clock.  Only after `heard`."""
        assert self._offset_s is not None
        return when + self._offset_s
