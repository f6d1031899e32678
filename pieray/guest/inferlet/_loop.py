"""The event loop of an inferlet: asyncio on one blocking point, `tickets.wait`.

Tasks, timers and callbacks are asyncio's own; where a usual loop polls sockets, this one waits for tickets.
A coroutine that awaits a ticket while nothing else could run does not reach the loop at all (`_waiting.py`),
which is what keeps a generated token cheap.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
import sys
import weakref
from asyncio import events
from collections import deque
from collections.abc import Callable
from typing import Any

from . import _host, _report
from ._idle import LONG_S, PATIENCE_MS, held
from .errors import Error, InvalidRequest

#: Rounds of callbacks after which tickets are polled although there is always something to run.
MAX_ROUNDS = 16

#: The longest wait that a call of the host takes: three weeks.
MAX_WAIT_MS = 2**31 - 2

LONG_MS = int(LONG_S * 1000)


class Deadlock(RuntimeError):
    """Every task waits for something that no task, ticket or timer will ever bring."""


class TicketLoop(asyncio.AbstractEventLoop):
    """An asyncio event loop without sockets, threads, signals or subprocesses."""

    def __init__(self) -> None:
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._num_timers = 0
        self._num_cancelled = 0
        self._num_rounds = 0
        self._tickets: dict[int, list[asyncio.Future[None]]] = {}  # who waits for each
        self._long: set[int] = set()  # those that take long, by what they are
        self._is_idle_due = False  # a long wait has begun since others were told
        self._generators: weakref.WeakSet[Any] = weakref.WeakSet()
        self._is_running = False
        self._is_closed = False
        self._is_stopping = False
        self._debug = False

    # -- what tasks and futures ask of a loop

    def time(self) -> float:
        return float(_host.runtime.monotonic_now()) / 1e9

    def get_debug(self) -> bool:
        return self._debug

    def set_debug(self, enabled: bool) -> None:
        self._debug = enabled

    def is_running(self) -> bool:
        return self._is_running

    def is_closed(self) -> bool:
        return self._is_closed

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **kwargs)

    def call_soon(  # type: ignore[override]  # typeshed types the callback's arguments
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there are no threads

    def call_later(  # type: ignore[override]  # typeshed types the callback's arguments
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        if delay >= LONG_S:
            self._is_idle_due = True
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # typeshed types the callback's arguments
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        if math.isnan(when):
            raise InvalidRequest("a time is a number of seconds; given nan")
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._num_timers += 1
        heapq.heappush(self._timers, (when, self._num_timers, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:  # noqa: ARG002 - asyncio's signature
        self._num_cancelled += 1
        if self._num_cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._num_cancelled = 0

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        _report.log_unhandled(context)

    default_exception_handler = call_exception_handler

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]  # noqa: ARG002
        raise RuntimeError("an inferlet has one thread: call the function directly")

    # -- running

    def run_until_complete(self, future: Any) -> Any:
        """Run until `future` (a coroutine or a future) is done; its result."""
        self._check_startable(future)
        is_owned = not asyncio.isfuture(future)
        task = asyncio.ensure_future(future, loop=self)
        try:
            with self._running():
                while not task.done():
                    self._check_not_stopped()
                    self._run_once()
        except BaseException:
            if is_owned and task.done() and not task.cancelled():
                task.exception()  # retrieved: it is what is being raised, or worse came
            raise
        return task.result()

    def run_forever(self) -> None:
        """Run until `stop`, or until nothing is left to wait for."""
        self._check_startable(None)
        with self._running():
            while not self._is_stopping and (self._ready or self._timers or self._tickets):
                self._run_once()

    def stop(self) -> None:
        self._is_stopping = True

    def close(self) -> None:
        if self._is_running:
            raise RuntimeError("a running loop cannot be closed")
        self._is_closed = True
        self._ready.clear()
        self._timers.clear()
        self._tickets.clear()

    async def shutdown_asyncgens(self) -> None:
        """Close all asynchronous generators that are still open."""
        generators = list(self._generators)
        self._generators.clear()
        results = await asyncio.gather(*(gen.aclose() for gen in generators), return_exceptions=True)
        for gen, result in zip(generators, results, strict=True):
            if isinstance(result, Exception):
                message = f"closing the asynchronous generator {gen.__name__} failed"
                self.call_exception_handler({"message": message, "exception": result})

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing to do: there is no executor."""

    def alone_ms(self) -> int:
        """How long nothing but the running callback can go on: -1 no end to it, 0 not at all."""
        if self._ready or self._tickets:
            return 0
        return _milliseconds(self._timers[0][0] - self.time()) if self._timers else -1

    def _check_startable(self, future: Any) -> None:
        message = ""
        if self._is_closed:
            message = "the event loop is closed"
        elif self._is_running or events._get_running_loop() is not None:
            message = "an event loop is running already: await instead"
        if message:
            if asyncio.iscoroutine(future):
                future.close()
            raise RuntimeError(message)

    def _check_not_stopped(self) -> None:
        if self._is_stopping:
            raise RuntimeError("the loop was stopped before its future was done")

    def _running(self) -> _Running:
        return _Running(self)

    def _run_once(self) -> None:
        """Make ready what is due, waiting for the next ticket or timer if need be; run what is ready."""
        ready = self._ready
        if not ready or self._num_rounds >= MAX_ROUNDS:
            self._num_rounds = 0
            if not self._timers:
                self._wait(-1 if not ready else 0)
        elif self._tickets:
            self._num_rounds += 1
        if self._timers:
            self._run_timers(wait=not ready)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:  # a method call per callback is dear here
                handle._run()

    def _run_timers(self, *, wait: bool) -> None:
        """Make due timers ready; if there are none and `wait`, wait for the first of them or a ticket."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
            self._num_cancelled -= 1
        now = self.time()
        if wait and (not timers or timers[0][0] > now):
            self._wait(-1 if not timers else _milliseconds(timers[0][0] - now) + 1)
            now = self.time()
        while self._timers and self._timers[0][0] <= now:
            handle = heapq.heappop(self._timers)[2]
            if handle.cancelled():
                self._num_cancelled -= 1
            else:
                self._ready.append(handle)

    def _wait(self, timeout_ms: int) -> None:
        """Block in the host; complete the futures of the tickets that came."""
        waiting = self._tickets
        if timeout_ms < 0 and not waiting:
            if not self._ready and not self._is_stopping:
                raise Deadlock(_report.describe_deadlock(asyncio.all_tasks(self)))
            return
        try:
            done = self._wait_for(list(waiting), timeout_ms)
        except Error as error:
            self._fail_closed(error)
            return
        for ticket in done:
            self.end_waits(ticket)

    def _wait_for(self, tickets: list[int], timeout_ms: int) -> list[int]:
        """Those that have come.  If all that is waited for takes long, others may have the memory meanwhile."""
        if self._is_idle_due and not 0 <= timeout_ms < LONG_MS and self._long.issuperset(tickets):
            self._is_idle_due = False
            if held.is_to_be_told():
                if done := _host.tickets.wait(tickets, PATIENCE_MS):
                    self._is_idle_due = True
                    return done
                held.tell_idle()
                timeout_ms -= PATIENCE_MS if timeout_ms > 0 else 0
        return _host.tickets.wait(tickets, timeout_ms)

    def wait_for_long(self, ticket: int, *, is_told: bool) -> TicketWait:
        """The same for one that takes long; `is_told`: others know."""
        self._long.add(ticket)
        self._is_idle_due = self._is_idle_due or not is_told
        return self.wait_for(ticket)

    def wait_for(self, ticket: int) -> TicketWait:
        """Begin to wait for a ticket, beside others who may do so."""
        return TicketWait(self, ticket)

    def end_waits(self, ticket: int, error: Exception | None = None) -> None:
        """Wake all who wait for the ticket: it has a result, or will never have one."""
        self._long.discard(ticket)
        for future in self._tickets.pop(ticket, ()):
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _fail_closed(self, error: Error) -> None:
        """The host refused a wait: those who wait for a ticket that is not open, and only they, are told."""
        if not self._tickets:
            raise error
        for ticket in list(self._tickets):
            try:
                _host.tickets.wait([ticket], 0)
            except Error as found:
                self.end_waits(ticket, found)


def _milliseconds(seconds: float) -> int:
    """In whole ones, from 0 to what the host waits in one go; a timer may be due at inf."""
    return int(min(max(seconds * 1000, 0.0), MAX_WAIT_MS))


class TicketWait:
    """One of those who wait for a ticket: await `future`, then `leave`."""

    __slots__ = ("_loop", "_ticket", "_waiters", "future")

    def __init__(self, loop: TicketLoop, ticket: int) -> None:
        self.future: asyncio.Future[None] = asyncio.Future(loop=loop)
        self._loop = loop
        self._ticket = ticket
        self._waiters = loop._tickets.setdefault(ticket, [])
        self._waiters.append(self.future)

    def leave(self) -> bool:
        """Wait no more; whether nobody else does, not even one whose turn to take the result comes next."""
        waiters = self._waiters
        waiters.remove(self.future)
        if not waiters and self._loop._tickets.get(self._ticket) is waiters:
            del self._loop._tickets[self._ticket]
            self._loop._long.discard(self._ticket)
        return not waiters


class _Running:
    """The loop is the thread's running loop while the body runs."""

    def __init__(self, loop: TicketLoop) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        loop = self._loop
        self._hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=loop._generators.add, finalizer=self._close_generator)
        events._set_running_loop(loop)
        loop._is_running = True

    def _close_generator(self, gen: Any) -> None:
        self._loop._generators.discard(gen)
        if not self._loop._is_closed:
            self._loop.create_task(gen.aclose())

    def __exit__(self, *exc: object) -> None:
        loop = self._loop
        loop._is_running = loop._is_stopping = False
        events._set_running_loop(None)
        sys.set_asyncgen_hooks(*self._hooks)
