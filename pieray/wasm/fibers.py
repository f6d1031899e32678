"""Many guests on few threads: each guest's wasm runs on a fiber of wasmtime and is polled like a future.

The asynchronous C API is not wrapped by wasmtime-py, but its library exports it; see `native.py`.  The
rules that keep the process alive, each learned from a crash:

* nothing may leave a ctypes callback, so every host function catches BaseException;
* host functions run on the fiber's stack, which has to hold the deepest Python handler: native.STACK_BYTES;
* a future is deleted before its store is closed, and by the thread that polls it;
* no Python frame may be on the fiber when it is suspended: the callback of a blocking call returns first,
  and what wasmtime asks from then on ("done?") is a C function, `strlen` of a two-byte flag.  So a switch
  costs no call into Python, and no GIL.
"""

from __future__ import annotations

import ctypes
import logging
import struct
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import wasmtime

from pieray.concurrency.timers import Timer, Timers
from pieray.errors import PierayError
from pieray.wasm import native
from pieray.wasm.calls import Call, Instance, WasmFailed, error_of
from pieray.wasm.guest import Guest, Task, running
from pieray.wasm.housekeeping import Housekeeper
from pieray.wasm.parks import Park
from pieray.wasm.ticker import Load, Ticker
from pieray.wasm.turns import TurnQueue

if TYPE_CHECKING:
    from pieray.wasm.program import Program

log = logging.getLogger(__name__)

#: turns after which `on_batch_end` is called though more guests could run
BATCH_TURNS = 64

_STRLEN = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
_continuation = struct.Struct("<QQQ")  # callback, its argument, finalizer
_ALWAYS = ctypes.create_string_buffer(b"\1", 2)
#: the continuation of a blocking call that had its result at once
DONE = _continuation.pack(_STRLEN, ctypes.addressof(_ALWAYS), 0)

#: CPU time without a wait, from which on a guest's turn may be interrupted for others before its slice is over
LONG_S = 0.001

#: whether guests are to be held back any longer is looked at so often
LOOK_S = 0.01

_QUEUED, _RUNNING, _PARKED = range(3)

#: (the string returned, the error)
Ending = tuple[str | None, PierayError | None]


class FiberGuest(Guest):
    """A guest whose turns are taken by the workers of a FiberExecutor."""

    is_background = False

    def __init__(
        self, task: Task, timers: Timers, on_done: Callable[[Guest], None], turns: TurnQueue[FiberGuest]
    ) -> None:
        super().__init__(task, timers, on_done)
        self.tenant = task.tenant
        self.priority = task.priority
        self.served = 0.0
        self.is_starting = True
        self._turns = turns
        self._burst_s = 0.0  # CPU time since it last waited, of the turns before this one
        self._turn_began = 0.0
        self._context: Any = None
        self._state = _QUEUED
        self._is_woken = False
        self._park: Park | None = None
        self._park_timer: Timer | None = None
        self._results = 0
        self._flag = ctypes.create_string_buffer(2)
        self.continuation = _continuation.pack(_STRLEN, ctypes.addressof(self._flag), 0)
        self._instance: Instance | None = None
        self._body = self._run()

    @property
    def is_long(self) -> bool:
        if self._burst_s > LONG_S:
            return True
        return self._state == _RUNNING and time.monotonic() - self._turn_began > LONG_S

    @property
    def is_waiting(self) -> bool:
        return self._state == _PARKED

    def start(self) -> None:
        self._turns.put(self)

    def charge(self, seconds: float) -> None:
        self._turns.charge(self, seconds)
        super().charge(seconds)

    def unpark(self) -> None:
        with self._lock:
            if self._state != _PARKED:
                self._is_woken = True  # `_pause` sees it: a wake-up between the check and the park is not lost
                return
            self._state = _QUEUED
        self._turns.put(self)

    def suspend(self, park: Park, results: int) -> None:
        """From the callback of a blocking call: wait for `park`, then put its image at `results`."""
        self._park, self._results = park, results
        self._flag[0] = b"\0"

    def step(self) -> None:
        """One turn, on a worker.  Afterwards the guest is queued, parked or done."""
        began = time.thread_time()
        running.guest = self
        self._turn_began = time.monotonic()
        with self._lock:
            self._state, self._is_woken = _RUNNING, False
        self.is_starting = False
        ending: Ending | None = None
        try:
            self._turn()
        except StopIteration as stop:
            ending = stop.value
        except BaseException as failed:  # noqa: BLE001 - it becomes the outcome
            ending = None, error_of(self, failed)
        used = time.thread_time() - began
        self.charge(used)
        self._burst_s += used
        if ending is not None:
            self.finish(*ending)
        elif self.error is not None:
            self._end()
        elif self._park is not None:
            self._burst_s = 0.0
            self._pause()
        else:
            self._state = _QUEUED
            self._turns.put(self)

    def _turn(self) -> None:
        """Poll the fiber, unless what it waits for is still not there.  StopIteration carries the ending."""
        if self.error is not None:
            return
        if self._park is not None:
            image = self._park.resolve()
            if image is None:
                return
            if image:
                native.Image.from_address(self._results).raw = image
            self._flag[0] = b"\1"
            self._park = None
            self._cancel_park_timer()
            native.set_epoch_deadline(self._context, 1)  # epochs that went by while it waited are no turn of its
        next(self._body)

    def _pause(self) -> None:
        assert self._park is not None
        if self._park.deadline is not None and self._park_timer is None:
            self._park_timer = self._timers.at(self._park.deadline, self.unpark)
        with self._lock:
            if not self._is_woken and self.error is None:
                self._state = _PARKED
                return
            self._state = _QUEUED
        self._turns.put(self)

    def _end(self) -> None:
        """Unwind the fiber (deleting its future does) and report the recorded error."""
        self._cancel_park_timer()
        if self._park is not None:
            self._park.abandon()
        self._body.close()
        self.finish(None, self.error)

    def take_instance(self) -> Instance | None:
        """Of a guest that is done, to be closed."""
        instance, self._instance = self._instance, None
        return instance if self.is_done else None

    def _cancel_park_timer(self) -> None:
        if self._park_timer is not None:
            self._park_timer.cancel()
            self._park_timer = None

    def _run(self) -> Generator[None, None, Ending]:
        """The whole life of the fiber; yields whenever it is suspended, returns (value, error)."""
        task, limits = self.task, self.task.limits
        if (ready := task.take_ready(limits.memory_bytes)) is not None:
            self._instance = ready
            self._adopt(ready)
            native.set_epoch_deadline(ready.context, 1)  # those that went by since it was made are no turn of its
        instance = ready or (yield from self._new_instance())
        if (source := task.source) is None:
            return (yield from self._call(instance, "run", (task.input,), limits.output_bytes)), None
        named = source.text, source.filename
        if not (code := source.code):
            code = yield from self._call(instance, "compile-source", named, limits.memory_bytes)
            source.keep(code)
        inputs = *named, code, self.handlers.runtime.random_u64(), task.input
        return (yield from self._call(instance, "run-source", inputs, limits.output_bytes)), None

    def _new_instance(self) -> Generator[None, None, Instance]:
        instance = self._instance = Instance(self.task.program, self.task.limits.memory_bytes)
        self._adopt(instance)
        yield from _instantiate(instance)
        return instance

    def _adopt(self, instance: Instance) -> None:
        """Its store is this guest's from now on."""
        self._context = instance.context
        self.wasi = instance.wasi
        native.yield_on_epoch(instance.context, 1)

    def _call(
        self, instance: Instance, export: str, inputs: tuple[str | int, ...], cap: int
    ) -> Generator[None, None, str]:
        """The string that the export returns, of `cap` bytes at most; "" if it takes nothing and returns nothing."""
        call = Call(instance, export, inputs)
        try:
            yield from _drive(
                lambda error: native.call_async(
                    call.function, self._context, call.args, call.num_args, call.result, call.num_results, error
                )
            )
            return call.take_result(self.task.limits, cap) if call.num_results else ""
        finally:
            call.close()


class PreparingGuest(FiberGuest):
    """Makes an instance for a later guest and has it prepare, in turns that no guest wants."""

    is_background = True
    instance: Instance | None = None
    """Whoever takes it from here closes it; None: it could not be made."""

    @property
    def is_long(self) -> bool:
        return True

    def _run(self) -> Generator[None, None, Ending]:
        instance = Instance(self.task.program, self.task.limits.memory_bytes)
        try:
            self._adopt(instance)
            yield from _instantiate(instance)
            yield from self._call(instance, "prepare", (), 0)
        except BaseException:
            instance.close()
            raise
        instance.wasi = self.wasi
        self.instance = instance
        return "", None


def _instantiate(instance: Instance) -> Generator[None, None, None]:
    linker, component = instance.program.linker.ptr(), instance.program.component.ptr()
    yield from _drive(
        lambda error: native.instantiate_async(linker, instance.context, component, instance.address, error)
    )


def _drive(begin: Callable[[object], int]) -> Generator[None, None, None]:
    """Poll a future to its end; WasmFailed if that is an error.  Closing the generator unwinds the fiber."""
    error = ctypes.c_void_p()
    future = begin(ctypes.byref(error))
    try:
        while not native.future_poll(future):
            yield
    finally:
        native.future_delete(future)
    if error.value:
        raise WasmFailed(native.take_error(error.value))


class FiberExecutor:
    """`num_threads` workers run the guests of one TurnQueue."""

    name = "fiber"

    def __init__(
        self,
        engine: wasmtime.Engine,
        timers: Timers,
        num_threads: int,
        on_batch_end: Callable[[], None],
        weight_of: Callable[[str], float],
        is_short: Callable[[str, int], bool],
    ) -> None:
        """`is_short`: whether many wait for pages of those who get some before a guest of that tenant and priority."""
        self._timers = timers
        self._on_batch_end = on_batch_end
        self._num_turns = [0] * num_threads  # per worker: odd while it runs a turn
        self._last_turns = list(self._num_turns)

        def tick() -> None:
            native.increment_epoch(engine.ptr())

        self._ticker = Ticker(tick, self._load)
        self._turns: TurnQueue[FiberGuest] = TurnQueue(
            num_threads,
            preempt=self._ticker.interrupt,
            weight_of=weight_of,
            is_short=lambda guest: guest.task.may_be_held and is_short(guest.tenant, guest.priority),
            on_held=self._held_back,
        )
        self._is_looking = False  # a timer is set for those that are held back
        self._looking = threading.Lock()
        self._housekeeper = Housekeeper(lambda: bool(self._turns))
        self._seen = [(0, 0.0)] * num_threads  # per worker: a turn, and when it was first seen
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"pieray-guests-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def new_guest(self, task: Task, on_done: Callable[[Guest], None]) -> Guest:
        return FiberGuest(task, self._timers, on_done, self._turns)

    def new_preparing_guest(self, task: Task, on_done: Callable[[Guest], None]) -> PreparingGuest:
        return PreparingGuest(task, self._timers, on_done, self._turns)

    def make_instance(self, program: Program, memory_bytes: int, made: Callable[[Instance | None], None]) -> None:
        """Make one that does not prepare; `made` is called once, unless this closes before."""

        def make() -> None:
            instance = Instance(program, memory_bytes)
            native.yield_on_epoch(instance.context, 1)
            try:
                for _ in _instantiate(instance):
                    pass
            except BaseException as failed:  # noqa: BLE001 - the next one is made later
                log.warning("%s could not be instantiated: %s", program.name, failed)
                instance.close()
                made(None)
            else:
                made(instance)

        self._housekeeper.make_later(make)

    @property
    def busy_s(self) -> float:
        """How long a worker has been at one turn, as seen by calls of this, by one thread.

        A guest that computes is cut into slices; what is long is a host function that hangs.
        """
        now = time.monotonic()
        seen_before = zip(self._seen, self._num_turns, strict=True)
        self._seen = [seen if seen[0] == turn else (turn, now) for seen, turn in seen_before]
        return max(now - since if turn & 1 else 0.0 for turn, since in self._seen)

    @property
    def num_waiting(self) -> int:
        """Instances of guests that are done, to be closed."""
        return len(self._housekeeper)

    def runs_on(self, thread: threading.Thread) -> bool:
        return thread in self._threads

    def close(self) -> None:
        """Stop the workers; there must be no guest left."""
        self._turns.close()
        for thread in self._threads:
            thread.join()
        self._housekeeper.close()
        self._ticker.close()

    def _work(self, index: int) -> None:
        turns = 0
        while (guest := self._turns.get()) is not None:
            if self._ticker.is_asleep:
                self._ticker.wake()
            if guest.is_long and turns:  # it may take a whole slice: what others have posted goes first
                turns = 0
                self._end_batch()
            self._num_turns[index] += 1
            try:
                guest.step()
            except BaseException as failed:
                log.exception("the turn of %r failed", guest)
                guest.finish(None, PierayError(f"the wasm host failed: {failed!r}"))
            self._num_turns[index] += 1
            self._turns.release(guest)
            if guest.is_done and (instance := guest.take_instance()) is not None:
                self._housekeeper.close_later(instance)
            del guest, running.guest  # while this thread sleeps, a guest that is done must not live on here
            turns += 1
            if turns == BATCH_TURNS or not self._turns:
                turns = 0
                self._end_batch()

    def _held_back(self) -> None:
        self._end_batch()  # the worker may have nothing to do from here on
        self._look_later()

    def _look_later(self) -> None:
        with self._looking:
            if not self._is_looking:
                self._is_looking = True
                self._timers.at(time.monotonic() + LOOK_S, self._look)

    def _look(self) -> None:
        with self._looking:
            self._is_looking = False
        self._turns.let_in()
        if self._turns.num_held:
            self._look_later()

    def _end_batch(self) -> None:
        try:
            self._on_batch_end()
        except BaseException:
            log.exception("on_batch_end failed")

    def _load(self) -> Load:
        now, before = list(self._num_turns), self._last_turns
        self._last_turns = now
        if self._turns.is_urgent():
            return Load.URGENT
        if any(turn & 1 and turn == last for turn, last in zip(now, before, strict=True)):
            return Load.OVERDUE
        return Load.IDLE if now == before else Load.BUSY
