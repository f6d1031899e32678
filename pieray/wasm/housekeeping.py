"""Closes the instances of guests that are done, and makes those of guests to come, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pieray.wasm.calls import Instance

log = logging.getLogger(__name__)

MOST_WAITING = 32
"""Instances to be closed; above that they are, whoever waits for a turn."""
BUSY_S = 0.005
"""After so long it is asked again whether guests wait."""

Make = Callable[[], None]


class Housekeeper:
    """One thread.  Each of its jobs takes a millisecond or two, in native code, and none is begun while guests wait.

    A slot of memory that has just been put back is the next to be used: it is still in the processor's caches.
    """

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        """`is_busy` tells whether guests wait for a turn."""
        self._is_busy = is_busy
        self._closing: deque[Instance] = deque()
        self._making: deque[Make] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_ended = False
        self._thread = threading.Thread(target=self._run, name="pieray-instances", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Instances to be closed, that at work included."""
        return len(self._closing) + self._is_closing

    def close_later(self, instance: Instance) -> None:
        """Its futures are deleted already."""
        with self._changed:
            self._closing.append(instance)
            self._changed.notify()

    def make_later(self, make: Make) -> None:
        """Call it on the thread; not any more once `close` was called."""
        with self._changed:
            self._making.append(make)
            self._changed.notify()

    def close(self) -> None:
        """Close the instances that wait, and return when that is done."""
        with self._changed:
            self._is_ended = True
            self._making.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException:  # a panic of native code too
                log.exception("an instance could not be made or closed")
            del job

    def _next(self) -> Callable[[], None] | None:
        """Sleep until there is something to be done; None: no more."""
        with self._changed:
            self._is_closing = False
            while True:
                is_free = self._is_ended or not self._is_busy()
                if self._closing and (is_free or len(self._closing) > MOST_WAITING):
                    self._is_closing = True
                    return self._closing.popleft().close
                if self._making and is_free:
                    return self._making.popleft()
                if self._is_ended:
                    return None
                self._changed.wait(BUSY_S if self._closing or self._making else None)
