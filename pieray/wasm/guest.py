"""One running program: its life, its limits, its end.  How it gets its turns is the executor's business."""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pieray.concurrency.timers import Timer, Timers
from pieray.config import Limits
from pieray.errors import DeadlineExceeded, GuestTrapped, PierayError, QuotaExceeded
from pieray.wasm import native
from pieray.wasm.handlers import Handlers

if TYPE_CHECKING:
    from pieray.wasm.calls import Instance
    from pieray.wasm.program import Program
    from pieray.wasm.wasi import WasiState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a guest ended: `value` is the string that it returned, or `error` says why there is none."""

    value: str | None
    error: PierayError | None
    cpu_time_s: float
    wall_time_s: float


@dataclass(frozen=True, slots=True)
class Source:
    """Of a program that the Python runtime runs.  `keep` is given the code that the guest has made of it."""

    text: str
    filename: str
    code: str
    """What was kept of an earlier guest, or ""."""
    keep: Callable[[str], None]


def no_instance(_memory_bytes: int) -> None:
    """There is none that has been made ahead."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to run, for whom, and how far."""

    program: Program
    handlers: Handlers
    limits: Limits
    input: str
    on_exit: Callable[[Outcome], None]
    name: str = ""
    tenant: str = ""
    """Tenants share what guests compute, before the guests of each do."""
    priority: int = 0
    """The higher has its turns first."""
    may_be_held: bool = True
    """Whether its first turn may be put off while pages are short."""
    source: Source | None = None
    take_ready: Callable[[int], Instance | None] = no_instance
    """One that has been made ahead, bound to so many bytes of memory, if there is one by the first turn; else it is
    made then."""


class Running(threading.local):
    """The guest whose code this thread runs; host functions find it here."""

    guest: Guest


running = Running()


def running_id() -> str:
    """The instance id of the guest whose turn this thread has, or had last; "" if there was none, or it has ended."""
    guest = getattr(running, "guest", None)
    return "" if guest is None or guest.is_done else guest.name


class Guest(ABC):
    """A handle on a running program.  `unpark` and `kill` may be called from any thread at any time.

    `cpu_time_s` is the thread time of its turns, host functions included, as of its last turn.
    """

    def __init__(self, task: Task, timers: Timers, on_done: Callable[[Guest], None]) -> None:
        self.task = task
        self.name = task.name
        self.handlers = task.handlers
        self.message_cap = task.limits.message_bytes
        self.cpu_time_s = 0.0
        self.is_done = False
        self.error: PierayError | None = None
        self.wasi: WasiState | None = None
        self.stderr_tail = b""
        self._timers = timers
        self._on_done = on_done
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._wall_timer: Timer | None = None

    def __repr__(self) -> str:
        return f"<Guest {self.name or self.task.program.name}{' (done)' if self.is_done else ''}>"

    @property
    def memory_bytes(self) -> int:
        """Always 0: wasmtime's C API gives no access to the memories of a component.  Limits hold all the same."""
        return 0

    @property
    @abstractmethod
    def is_waiting(self) -> bool:
        """Whether it has nothing to compute until something wakes it."""

    @abstractmethod
    def unpark(self) -> None:
        """A ticket may have a result: ask `tickets_ready` again if the guest waits.  Idempotent, thread-safe."""

    @abstractmethod
    def start(self) -> None:
        """Let the executor give it turns.  Once."""

    def kill(self, error: PierayError) -> None:
        """End the guest with `error`, whatever it does.  Idempotent, thread-safe; the first error wins."""
        if self.fail(error):
            self.unpark()

    def fail(self, error: PierayError) -> bool:
        """Record why the guest ends; its executor sees it before the next turn.  False: it had ended before."""
        with self._lock:
            if self.is_done or self.error is not None:
                return False
            self.error = error
            return True

    def trap(self, error: BaseException) -> int:
        """End the guest from within a host function: the address of the error that the function must return."""
        if not isinstance(error, PierayError):
            log.error("a host function failed", exc_info=error)
            error = GuestTrapped(f"a host function failed: {error!r}")
        self.fail(error)
        return native.error_new(b"ended by the host")  # type: ignore[no-any-return]  # an int by declaration

    def arm_wall_limit(self) -> None:
        limit = self.task.limits.wall_time_s
        if math.isfinite(limit):
            error = DeadlineExceeded(f"wall_time_s is {limit:g}; the inferlet ran longer")
            self._wall_timer = self._timers.at(self._started + limit, partial(self.kill, error))

    def charge(self, seconds: float) -> None:
        """Add to the CPU time; over the limit, the guest fails."""
        self.cpu_time_s += seconds
        limit = self.task.limits.cpu_time_s
        if self.cpu_time_s > limit:
            self.fail(QuotaExceeded(f"cpu_time_s is {limit:g}; the inferlet computed for {self.cpu_time_s:.3f} s"))

    def finish(self, value: str | None, error: PierayError | None) -> None:
        """The end, once: tell `on_exit`.  An error recorded by `fail` wins over what the guest made of it."""
        with self._lock:
            if self.is_done:
                return
            self.is_done = True
            error = self.error or error
        if self._wall_timer is not None:
            self._wall_timer.cancel()
        wall_time_s = time.monotonic() - self._started
        self._on_done(self)
        try:
            self.task.on_exit(Outcome(None if error else value, error, self.cpu_time_s, wall_time_s))
        except BaseException:
            log.exception("on_exit of %r failed", self)
