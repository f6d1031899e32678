"""Instances of the Python runtime made ahead of launches, and the compiled code of sources that have run."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from pieray.concurrency.timers import Timers
from pieray.errors import EngineError

if TYPE_CHECKING:
    from pieray.wasm.calls import Instance
    from pieray.wasm.program import Program

log = logging.getLogger(__name__)

QUIET_S = 0.05
"""No instance that prepares is begun sooner after one was taken: it takes ten times what one in a launch does, and what
a burst of launches needs is time."""
RETRY_S = 10.0
"""Before it is tried again, if one could not be made."""
HEADROOM_BYTES = 4 << 20
"""By which preparing may make the largest memory grow."""
CODE_BYTES = 32 << 20
"""Of all sources and their code that are kept."""

#: makes an instance within so many bytes of memory, and prepares it or not; told the instance, or
#: None, once
Prepare = Callable[["Program", int, bool, Callable[["Instance | None"], None]], None]


class ReadyInstances:
    """Up to `size` instances of a program.  Each serves one guest, once.  Thread-safe.

    One is made at a time, when no guest wants a turn.  The first `num_cold` prepare, as background guests: they write
    to what is written to in all runs, so that the slots of memory that they have are warm when they are used again.
    Each takes about 8 MiB of memory, and no more than the program's initial memory and HEADROOM_BYTES.
    """

    def __init__(self, program: Program, size: int, num_cold: float, prepare: Prepare, timers: Timers) -> None:
        self.program = program
        self._size = size
        self._num_cold = num_cold
        self._prepare = prepare
        self._timers = timers
        memories = program.memories
        self._memory_bytes = (memories.initial_bytes + HEADROOM_BYTES) * max(memories.number, 1)
        self._instances: deque[Instance] = deque()
        self._is_filling = False  # a fill is under way, or a timer for one is
        self._taken_at = 0.0
        self._is_closed = False
        self._lock = threading.Lock()
        self._fill_later(0.0)

    def __len__(self) -> int:
        return len(self._instances)

    def take(self, memory_bytes: int) -> Instance | None:
        """An instance, bound to `memory_bytes` from now on; None if there is none, or it may be larger already."""
        if memory_bytes < self._memory_bytes:
            return None
        self._taken_at = time.monotonic()
        with self._lock:
            instance = self._instances.pop() if self._instances else None
        self._fill_later(self._quiet_s())
        if instance is not None:
            instance.limit(memory_bytes)
        return instance

    def _quiet_s(self) -> float:
        return QUIET_S if self._num_cold else 0.0

    def close(self) -> None:
        """Make no more, and drop those that there are; idempotent."""
        with self._lock:
            self._is_closed = True
            instances, self._instances = self._instances, deque()
        for instance in instances:
            instance.close()

    def _fill_later(self, seconds: float) -> None:
        with self._lock:
            if self._is_filling or self._is_closed or len(self._instances) >= self._size:
                return
            self._is_filling = True
        if seconds:
            self._timers.at(time.monotonic() + seconds, self._fill)
        else:
            self._fill()

    def _fill(self) -> None:
        if (left_s := self._taken_at + self._quiet_s() - time.monotonic()) > 0:
            self._timers.at(time.monotonic() + left_s, self._fill)
            return
        try:
            self._prepare(self.program, self._memory_bytes, self._num_cold > 0, self._made)
        except EngineError as error:  # the host is closing
            log.info("no instance of %s is made: %s", self.program.name, error)

    def _made(self, instance: Instance | None) -> None:
        if instance is None:
            self._timers.at(time.monotonic() + RETRY_S, self._fill)
            return
        with self._lock:
            self._is_filling = False
            self._num_cold = max(0.0, self._num_cold - 1)
            if not self._is_closed:
                self._instances.append(instance)
                instance = None
        if instance is not None:
            instance.close()
        self._fill_later(0.0)


class CodeCache:
    """The code that guests have made of sources, by tenant, filename and source; what was used last is kept.

    A guest gives it out before anything of the source has run in it, and a tenant is given only what the same text
    gave in a guest of its own: nobody can put in other code.  Thread-safe.
    """

    def __init__(self, most_bytes: int = CODE_BYTES) -> None:
        self._most_bytes = most_bytes
        self._codes: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, tenant: str, filename: str, source: str) -> str:
        """Its code, or ""."""
        key = tenant, filename, source
        with self._lock:
            if code := self._codes.get(key, ""):
                self._codes.move_to_end(key)
            return code

    def put(self, tenant: str, filename: str, source: str, code: str) -> None:
        """Keep it, unless it is larger than an eighth of what may be kept."""
        size = _size_of(source, code)
        if size > self._most_bytes // 8:
            return
        with self._lock:
            if (tenant, filename, source) in self._codes:
                return
            self._codes[tenant, filename, source] = code
            self._num_bytes += size
            while self._num_bytes > self._most_bytes:
                (_, _, old), dropped = self._codes.popitem(last=False)
                self._num_bytes -= _size_of(old, dropped)


def _size_of(source: str, code: str) -> int:
    """About how many bytes the two take; a str takes up to 4 bytes for a character, most take 1."""
    return 2 * len(source) + len(code) + 200
