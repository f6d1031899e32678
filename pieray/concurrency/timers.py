"""One thread that calls functions at given times."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


MAX_WAIT_S = 3600.0


class Timer:
    """One entry; `cancel` is idempotent and cheap."""

    __slots__ = ("_owner", "callback")

    def __init__(self, owner: Timers, callback: Callable[[], object]) -> None:
        self._owner = owner
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._owner.note_cancelled()


class Timers:
    """A heap of timers, called in order on a thread of its own.  Callbacks must be short."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._num_cancelled = 0
        self._wakes_at = -math.inf  # the thread, by itself; it is awake
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="pieray-timers", daemon=True)
        self._thread.start()

    def at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` once at `when` (time.monotonic) or soon after."""
        timer = Timer(self, callback)
        with self._changed:
            heapq.heappush(self._heap, (when, next(self._order), timer))
            if when < self._wakes_at:
                self._wakes_at = when
                self._changed.notify()
        return timer

    def note_cancelled(self) -> None:
        """Cancelled timers leave the heap when they are half of it: a guest that is done is not kept for its timers."""
        with self._changed:
            self._num_cancelled += 1
            if self._num_cancelled * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2].callback is not None]
                heapq.heapify(self._heap)
                self._num_cancelled = 0

    def __len__(self) -> int:
        return len(self._heap)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while self._run_due():
            pass

    def _run_due(self) -> bool:
        """In a frame of its own: while this thread sleeps, it must not hold the last callback and its guest."""
        due = self._next()
        for callback in due or ():
            try:
                callback()
            except BaseException:  # a panic of native code too: this thread has everybody's deadlines
                log.exception("a timer's callback failed")
        return due is not None

    def _next(self) -> list[Callable[[], object]] | None:
        """Sleep until something is due; None when closed."""
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                due = []
                while self._heap and self._heap[0][0] <= now:
                    timer = heapq.heappop(self._heap)[2]
                    if timer.callback is not None:
                        due.append(timer.callback)
                        timer.callback = None
                    else:
                        self._num_cancelled -= 1
                if due:
                    return due
                # a timer that is set, cancelled and set again wakes it once, not each time
                self._wakes_at = self._heap[0][0] if self._heap else math.inf
                # not for ever: what a lock can wait for is bounded, a limit of 1e300 s is not
                self._changed.wait(min(self._wakes_at - now, MAX_WAIT_S) if self._heap else None)
                self._wakes_at = -math.inf
        return None
