"""One thread that calls functions at given times, and one that cuts the time of guests into slices."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from enum import Enum

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
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="pieray-timers", daemon=True)
        self._thread.start()

    def at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` once at `when` (time.monotonic) or soon after."""
        timer = Timer(self, callback)
        with self._changed:
            heapq.heappush(self._heap, (when, next(self._order), timer))
            if self._heap[0][2] is timer:
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
                # not for ever: what a lock can wait for is bounded, a limit of 1e300 s is not
                self._changed.wait(min(self._heap[0][0] - now, MAX_WAIT_S) if self._heap else None)
        return None


class Load(Enum):
    """What the threads that run guests do: nothing, short turns, or a turn longer than a slice."""

    IDLE = 0
    BUSY = 1
    OVERDUE = 2
    URGENT = 3
    """A long turn, and others wait for it."""


class Ticker:
    """Advances an engine's epoch each `slice_s` while some guest's turn is overdue, and only then.

    A guest that is resumed after the epoch advanced yields once for nothing; with well-behaved guests the
    epoch stands still.  After `IDLE_TICKS` ticks without work the thread sleeps until `wake`.

    `interrupt` ends long turns now.  A guest that is being resumed at that moment misses the epoch: as long as others
    wait, they are ended again each HURRY_S.
    """

    IDLE_TICKS = 40
    HURRY_S = 0.001

    def __init__(self, tick: Callable[[], None], load: Callable[[], Load], slice_s: float = 0.005) -> None:
        self._tick, self._load, self._slice_s = tick, load, slice_s
        self._awake = threading.Event()
        self._hurried = threading.Event()
        self.is_asleep = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="pieray-ticker", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """To be called when work begins and `is_asleep`."""
        self._awake.set()

    def interrupt(self) -> None:
        """Guests wait, and all who run have long turns."""
        self._tick()
        self._hurried.set()

    def close(self) -> None:
        self._is_closed = True
        self._awake.set()
        self._hurried.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        idle = 0
        while not self._is_closed:
            if self._hurried.wait(self._slice_s):
                self._hurried.clear()
                time.sleep(self.HURRY_S)
            try:
                load = self._advance()
            except BaseException:  # without this thread no guest that spins would ever yield
                log.exception("the ticker failed")
                load = Load.BUSY
            idle = 0 if load is not Load.IDLE else idle + 1
            if idle > self.IDLE_TICKS:
                self._sleep()
                idle = 0

    def _advance(self) -> Load:
        load = self._load()
        if load is Load.URGENT:
            self.interrupt()
        elif load is Load.OVERDUE:
            self._tick()
        return load

    def _sleep(self) -> None:
        self._awake.clear()
        self.is_asleep = True
        if self._load() is Load.IDLE and not self._is_closed:  # work that began before is_asleep was set wakes no one
            self._awake.wait()
        self.is_asleep = False
