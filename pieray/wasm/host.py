"""The wasm host: loads components, runs any number of guests, ends each within its limits."""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import wasmtime
from wasmtime.component import Component

from pieray.concurrency.timers import Timers
from pieray.config import Limits
from pieray.errors import Cancelled, ConfigError, EngineError, InvalidRequest
from pieray.wasm import native
from pieray.wasm.calls import Instance
from pieray.wasm.compiler import CompileLimits, compiled
from pieray.wasm.engine import new_engine
from pieray.wasm.fibers import FiberExecutor
from pieray.wasm.guest import Guest, Outcome, Source, Task, no_instance
from pieray.wasm.handlers import Handlers
from pieray.wasm.housekeeping import MOST_WAITING
from pieray.wasm.memories import checked_memories
from pieray.wasm.pooling import Slots, can_pool
from pieray.wasm.program import Imports, Program
from pieray.wasm.ready import CodeCache, ReadyInstances
from pieray.wasm.rehearsal import RehearsalHandlers
from pieray.wasm.threads import ThreadExecutor

__all__ = ["CompileLimits", "Guest", "Handlers", "Outcome", "Program", "WasmHost"]

log = logging.getLogger(__name__)

MOST_GUESTS = 256
SPARE = 2 * MOST_WAITING
"""Slots above that: of guests that have ended and have not given theirs back."""
CLOSE_TIMEOUT_S = 30.0
PREPARE_S = 10.0
"""Of computing, for an instance that is made ahead: it takes milliseconds."""


class WasmHost:
    """Runs guests, each in a store of its own.  One per process.

    `executor`: "fiber" (many guests on `worker_threads` threads), "thread" (a thread per guest), or "auto":
    fibers where this build of wasmtime has them.  `most_guests`: instances at one time, those made ahead and those
    that are made included.  Not usable after a fork.
    """

    #: called on the thread that ran guests when none can run any more, or after some turns
    on_batch_end: Callable[[], None]

    def __init__(
        self,
        executor: str = "auto",
        worker_threads: int = 1,
        compile_limits: CompileLimits | None = None,
        most_guests: int = MOST_GUESTS,
        *,
        weight_of: Callable[[str], float] = lambda _: 1.0,
        is_short: Callable[[str, int], bool] = lambda _tenant, _priority: False,
    ) -> None:
        self.executor = choose_executor(executor)
        self.on_batch_end = _nothing
        self._compile_limits = compile_limits or CompileLimits()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._guests: set[Guest] = set()
        self._is_empty = threading.Event()
        self._is_closed = False
        self._is_pooled = can_pool(most_guests + SPARE)
        self._engine = new_engine(most_guests + SPARE if self._is_pooled else 0)
        self._imports = Imports(self.executor)
        self._slots = Slots() if self._is_pooled else None
        self._codes = CodeCache()
        self._ready: ReadyInstances | None = None
        self._timers = Timers()
        self._executor: FiberExecutor | ThreadExecutor
        if self.executor == "fiber":
            self._executor = FiberExecutor(
                self._engine, self._timers, worker_threads, self._end_batch, weight_of, is_short
            )
        else:
            self._executor = ThreadExecutor(self._engine, self._timers, self._end_batch)
        # a daemon thread that is inside wasm when the interpreter goes away would abort the process
        self._unregister = _close_at_exit(self)

    @property
    def busy_s(self) -> float:
        """How long a worker has been at one turn of a guest, as seen by calls of this, by one thread."""
        return self._executor.busy_s

    def calls(self) -> dict[str, int]:
        """How often guests have called each interface of the WIT, ever."""
        return self._imports.counts.by_interface()

    def load(self, wasm: Path | bytes, name: str, *, nice: int = 0) -> Program:
        """Check, compile (or find in the cache) and link a component.  `nice`: see CompileLimits.

        Raises InvalidRequest for anything but a component that imports only the handler API and WASI's
        subset and exports `run`; QuotaExceeded if compiling it takes too much.
        """
        self._check_usable()
        content = wasm if isinstance(wasm, bytes) else wasm.read_bytes()
        limits = replace(self._compile_limits, nice=nice)
        path = compiled(content, name, limits)
        memories = checked_memories(content, name)
        try:
            component = Component.deserialize_file(self._engine, str(path))
        except wasmtime.WasmtimeError as error:  # a damaged file: compile it again, once
            log.warning("the cached %s is damaged: %s", path, error)
            path.unlink(missing_ok=True)
            path = compiled(content, name, limits)
            try:
                component = Component.deserialize_file(self._engine, str(path))
            except wasmtime.WasmtimeError as too_large:
                raise InvalidRequest(f"{name} cannot be run here: {too_large}") from None
        return self._imports.program(self._engine, component, name, memories, self._slots)

    def spawn(
        self,
        program: Program,
        handlers: Handlers,
        limits: Limits,
        *,
        input: str,
        source: str | None = None,
        filename: str = "main.py",
        on_exit: Callable[[Outcome], None],
        name: str = "",
        tenant: str = "",
        priority: int = 0,
        may_be_held: bool = True,
    ) -> Guest:
        """Start a guest; returns at once.

        `on_exit` is called exactly once, on a thread that runs guests, perhaps before this returns.  `may_be_held`:
        whether its first turn may be put off while pages are short.

        `source` is for programs that take it, and only for them: InvalidRequest.
        """
        self._check_usable()
        given = self._source(program, source, filename, tenant)
        ready = self._ready if self._ready is not None and program is self._ready.program else None
        take_ready = no_instance if ready is None else ready.take
        task = Task(program, handlers, limits, input, on_exit, name, tenant, priority, may_be_held, given, take_ready)
        with self._lock:
            if self._is_closed:
                raise EngineError("the wasm host is closed")
            guest = self._executor.new_guest(task, self._forget)
            self._add(guest)
        guest.arm_wall_limit()
        guest.start()
        return guest

    def keep_ready(self, program: Program, count: int) -> None:
        """Have so many instances of a program that takes source made ahead, from now on, for guests that have room.

        Once.  Without fibers there are none: each guest has a thread of its own, where its instance is made.
        """
        if isinstance(self._executor, FiberExecutor) and count:
            num_cold = count if self._is_pooled else math.inf
            self._ready = ReadyInstances(program, count, num_cold, self._prepare, self._timers)

    def _prepare(
        self, program: Program, memory_bytes: int, is_cold: bool, made: Callable[[Instance | None], None]
    ) -> None:
        assert isinstance(self._executor, FiberExecutor)
        if not is_cold:
            self._executor.make_instance(program, memory_bytes, made)
            return
        limits = Limits(memory_bytes=memory_bytes, cpu_time_s=PREPARE_S, wall_time_s=math.inf)

        def ended(outcome: Outcome) -> None:
            if outcome.error is not None and not self._is_closed:
                log.warning("%s could not be prepared: %s", program.name, outcome.error)
            made(guest.instance)

        task = Task(program, RehearsalHandlers(), limits, "", ended, f"{program.name} (ahead)")
        with self._lock:
            if self._is_closed:
                raise EngineError("the wasm host is closed")
            guest = self._executor.new_preparing_guest(task, self._forget)
            self._add(guest)
        guest.start()

    def _source(self, program: Program, text: str | None, filename: str, tenant: str) -> Source | None:
        if not program.takes_source:
            if text is not None:
                raise InvalidRequest(f"{program.name} is compiled: it takes no source")
            return None
        if text is None:
            raise InvalidRequest(f"{program.name} runs source text: give source")
        code = self._codes.get(tenant, filename, text)
        return Source(text, filename, code, keep=partial(self._codes.put, tenant, filename, text))

    @property
    def num_ready(self) -> int:
        """Instances that wait for a launch."""
        return len(self._ready) if self._ready is not None else 0

    @property
    def num_waiting(self) -> int:
        """Instances of guests that are done, to be closed."""
        return self._executor.num_waiting

    @property
    def num_guests(self) -> int:
        return len(self._guests)

    def close(self) -> None:
        """Kill all guests (Cancelled), wait for their ends and for the threads.  Idempotent.

        EngineError from a handler or an `on_exit`: it would wait for itself.
        """
        if self._executor.runs_on(threading.current_thread()):
            raise EngineError("a wasm host cannot be closed from a thread that runs its guests")
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            guests = list(self._guests)
        self._unregister()
        if os.getpid() != self._pid:
            return
        if self._ready is not None:
            self._ready.close()
        for guest in guests:
            guest.kill(Cancelled("the wasm host was closed"))
        if guests and not self._is_empty.wait(CLOSE_TIMEOUT_S):
            log.error("%d guests are stuck in host functions; their threads are left behind", len(self._guests))
            return
        self._executor.close()
        self._timers.close()

    def _add(self, guest: Guest) -> None:
        self._guests.add(guest)
        self._is_empty.clear()

    def _forget(self, guest: Guest) -> None:
        with self._lock:
            self._guests.discard(guest)
            if not self._guests:
                self._is_empty.set()

    def _end_batch(self) -> None:
        self.on_batch_end()

    def _check_usable(self) -> None:
        if self._is_closed:
            raise EngineError("the wasm host is closed")
        if os.getpid() != self._pid:
            raise EngineError("a wasm host does not survive a fork; make one in the new process, or spawn it")


def choose_executor(wanted: str) -> str:
    """ "fiber" or "thread"; ConfigError for another name, EngineError if fibers are wanted and not there."""
    if wanted not in ("auto", "fiber", "thread"):
        raise ConfigError(f"executor is one of auto, fiber, thread; given {wanted!r}")
    missing = native.missing_async_symbols()
    if wanted == "fiber" and missing:
        raise EngineError(f"executor=fiber needs {', '.join(missing)}; use executor=thread")
    return "thread" if wanted == "thread" or missing else "fiber"


def _nothing() -> None:
    pass


def _close_at_exit(host: WasmHost) -> Callable[[], None]:
    reference = weakref.ref(host)

    def close() -> None:
        if (alive := reference()) is not None:
            alive.close()

    atexit.register(close)
    return lambda: atexit.unregister(close)
