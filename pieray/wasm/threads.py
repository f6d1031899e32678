"""A thread per guest, on wasmtime's synchronous API: what remains where fibers cannot be used.

Good for some hundred guests.  A blocked guest blocks its thread; a spinning one is asked at each tick of
the epoch whether it may go on.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import wasmtime

from pieray.concurrency.deadlines import wait_s
from pieray.concurrency.timers import Timers
from pieray.errors import EngineError, PierayError
from pieray.wasm import native
from pieray.wasm.calls import Call, Instance, WasmFailed, error_of
from pieray.wasm.guest import Guest, Task, running
from pieray.wasm.parks import Park
from pieray.wasm.ticker import Load, Ticker

log = logging.getLogger(__name__)


class ThreadGuest(Guest):
    """A guest with a thread of its own."""

    def __init__(self, task: Task, timers: Timers, on_done: Callable[[Guest], None], executor: ThreadExecutor) -> None:
        super().__init__(task, timers, on_done)
        self._executor = executor
        self._wake = threading.Event()
        self._charged_at = 0.0
        self.is_running = False

    @property
    def is_waiting(self) -> bool:
        return not self.is_running and not self._wake.is_set()

    def start(self) -> None:
        try:
            self._executor.start_thread(self._run)
        except RuntimeError as error:
            self.finish(None, EngineError(f"no thread for the guest: {error}"))

    def unpark(self) -> None:
        self._wake.set()

    def block(self, park: Park) -> bytes | None:
        """Wait for `park` on this thread; None if the guest was killed meanwhile."""
        self.charge_turn()
        self.is_running = False
        try:
            self._executor.end_turn()
            while self.error is None:
                self._wake.clear()  # before the check: a wake-up after it ends the wait below
                image = park.resolve()
                if image is not None:
                    return image
                if self.error is None:
                    self._wake.wait(None if park.deadline is None else wait_s(park.deadline))
            park.abandon()
            return None
        finally:
            self.is_running = True
            self._executor.wake_ticker()

    def charge_turn(self) -> None:
        """Account for the thread's time since the last call."""
        now = time.thread_time()
        self.charge(now - self._charged_at)
        self._charged_at = now

    def _run(self) -> None:
        running.guest = self
        self.is_running = True
        self._executor.wake_ticker()
        outcome: tuple[str | None, PierayError | None]
        try:
            outcome = (self._call_all(), None) if self.error is None else (None, self.error)
        except BaseException as failed:  # noqa: BLE001 - it becomes the outcome
            outcome = None, error_of(self, failed)
        self.charge_turn()
        self.is_running = False
        self.finish(*outcome)
        self._executor.end_turn()

    def _call_all(self) -> str:
        task, limits = self.task, self.task.limits
        program = task.program
        instance = Instance(program, limits.memory_bytes)
        try:
            on_epoch = ctypes.cast(_ON_EPOCH, ctypes.c_void_p)
            native.store_epoch_callback(instance.store_address, on_epoch, None, None)
            linker, component = program.linker.ptr(), program.component.ptr()
            _raise_error(native.linker_instantiate(linker, instance.context, component, instance.address))
            if (source := task.source) is None:
                return self._call(instance, "run", (task.input,), limits.output_bytes)
            named = source.text, source.filename
            if not (code := source.code):
                code = self._call(instance, "compile-source", named, limits.memory_bytes)
                source.keep(code)
            inputs = *named, code, self.handlers.runtime.random_u64(), task.input
            return self._call(instance, "run-source", inputs, limits.output_bytes)
        finally:
            instance.close()

    def _call(self, instance: Instance, export: str, inputs: tuple[str | int, ...], cap: int) -> str:
        call = Call(instance, export, inputs)
        try:
            _raise_error(
                native.func_call(
                    call.function, instance.context, call.args, call.num_args, call.result, call.num_results
                )
            )
            return call.take_result(self.task.limits, cap)
        finally:
            call.close()


def _raise_error(address: int | None) -> None:
    if address:
        raise WasmFailed(native.take_error(address))


def _on_epoch(_context: Any, _env: Any, delta: Any, _kind: Any) -> int:
    """May the guest of this thread go on for another slice?"""
    guest = running.guest
    try:
        assert isinstance(guest, ThreadGuest)
        guest.charge_turn()
        if guest.error is not None:
            return guest.trap(guest.error)
        delta[0] = 1
        return 0
    except BaseException as failed:  # noqa: BLE001 - nothing may leave a callback
        return guest.trap(failed)


_ON_EPOCH = native.EpochCallback(_on_epoch)


class ThreadExecutor:
    """Starts a thread for each guest."""

    name = "thread"

    def __init__(self, engine: wasmtime.Engine, timers: Timers, on_batch_end: Callable[[], None]) -> None:
        self._timers = timers
        self._on_batch_end = on_batch_end
        self._guests: set[ThreadGuest] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._ticker = Ticker(lambda: native.increment_epoch(engine.ptr()), self._load)

    def new_guest(self, task: Task, on_done: Callable[[Guest], None]) -> Guest:
        def forget(guest: Guest) -> None:
            self._guests.discard(guest)
            on_done(guest)

        guest = ThreadGuest(task, self._timers, forget, self)
        self._guests.add(guest)
        return guest

    def start_thread(self, run: Callable[[], None]) -> None:
        def body() -> None:
            try:
                run()
            finally:
                self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=body, name="pieray-guest", daemon=True)
        with self._lock:  # the stack size is a setting of the process: for as short as it can be
            before = threading.stack_size(native.STACK_BYTES)
            try:
                self._threads.add(thread)
                thread.start()
            except RuntimeError:
                self._threads.discard(thread)
                raise
            finally:
                threading.stack_size(before)

    def end_turn(self) -> None:
        """A guest parks or is done.  Nothing coalesces here: each thread's messages go out by themselves."""
        try:
            self._on_batch_end()
        except BaseException:
            log.exception("on_batch_end failed")

    def wake_ticker(self) -> None:
        if self._ticker.is_asleep:
            self._ticker.wake()

    @property
    def busy_s(self) -> float:
        """0: a guest that hangs in a host function keeps nobody else from running."""
        return 0.0

    @property
    def num_waiting(self) -> int:
        """0: each guest closes its own."""
        return 0

    def runs_on(self, thread: threading.Thread) -> bool:
        return thread in self._threads

    def close(self) -> None:
        """Join the threads; there must be no guest left."""
        for thread in list(self._threads):
            thread.join()
        self._ticker.close()

    def _load(self) -> Load:
        return Load.OVERDUE if any(g.is_running for g in list(self._guests)) else Load.IDLE
