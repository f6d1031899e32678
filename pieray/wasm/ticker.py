"""One thread that cuts the time of guests into slices."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from enum import Enum

log = logging.getLogger(__name__)


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
