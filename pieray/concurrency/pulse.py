"""How long a work loop has been at its present turn: what tells one that hangs from one that waits for work."""

from __future__ import annotations

import threading
import time


class Pulse:
    """Set by one thread at a time, read by any."""

    def __init__(self) -> None:
        self._since: float | None = None

    def begin(self) -> None:
        """A turn begins."""
        self._since = time.monotonic()

    def end(self) -> None:
        """It has ended: the loop waits for work."""
        self._since = None

    @property
    def busy_s(self) -> float:
        """Since the present turn began; 0 between turns."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


class PulsedLock:
    """A lock that knows how long it has been held: the pulse of services whose work is done under one lock.

    Takes the place of a threading.Lock, also under a threading.Condition.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pulse = Pulse()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        is_taken = self._lock.acquire(blocking, timeout)
        if is_taken:
            self._pulse.begin()
        return is_taken

    def release(self) -> None:
        self._pulse.end()
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def busy_s(self) -> float:
        """Since it was taken; 0 while nobody holds it."""
        return self._pulse.busy_s
