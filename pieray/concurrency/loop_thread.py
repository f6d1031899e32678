"""One asyncio loop on a thread of its own, started when first needed: for handlers that wait for the world."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from pieray.errors import Cancelled, EngineError, PierayError

log = logging.getLogger(__name__)

CLOSE_S = 15.0

Work = Coroutine[Any, Any, Any]


class Job:
    """A coroutine on the loop: `done` is called once, with its value or a PierayError, unless it is cancelled."""

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """Stop it, soon; from any thread, at any time."""
        self._is_cancelled = True
        self._loop.call(self._cancel)

    def start(self, work: Work, done: Callable[[Any], object]) -> None:
        """Run it; from any thread.  Raises EngineError once the loop is closed."""
        if not self._loop.call(self._begin, work, done):
            work.close()
            raise EngineError("this InferletActor is closing")

    def _begin(self, work: Work, done: Callable[[Any], object]) -> None:
        if self._is_cancelled:
            work.close()
        else:
            self._task = asyncio.get_running_loop().create_task(_run(work, done))
            self._loop.tasks.add(self._task)
            self._task.add_done_callback(self._loop.tasks.discard)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


async def _run(work: Work, done: Callable[[Any], object]) -> None:
    result: Any
    try:
        result = await work
    except PierayError as error:
        result = error
    except asyncio.CancelledError:
        done(Cancelled("the command was cancelled"))
        raise
    except BaseException as error:  # a panic of native code too: the loop serves others
        log.exception("work for an inferlet failed")
        result = PierayError(f"{type(error).__name__}: {error}")
    done(result)


class LoopThread:
    """The loop; nothing runs before the first call."""

    def __init__(self, name: str = "pieray-world") -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        """What is cancelled at close."""
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._at_close: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._is_closed = False
        self._is_stopped = False
        self._lock = threading.Lock()

    def call(self, function: Callable[..., None], *args: Any) -> bool:
        """Call a function on the loop, soon; False if it is closed."""
        with self._lock:
            if self._is_closed:
                return False
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()
            self._loop.call_soon_threadsafe(function, *args)
            return True

    def before_close(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await `function()` at close, after all jobs have ended."""
        self._at_close.append(function)

    def close(self) -> None:
        """Cancel all jobs, await what was to be awaited, stop the thread; idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        ended = asyncio.run_coroutine_threadsafe(self._wind_down(), loop)
        try:
            ended.result(CLOSE_S)
        except BaseException:
            log.exception("not all work for inferlets could be ended within %s s", CLOSE_S)
        self._is_stopped = True
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_S)

    async def _wind_down(self) -> None:
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for function in self._at_close:
            await function()

    def _serve(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        while not self._is_stopped:
            try:
                self._loop.run_forever()
            except BaseException:  # SystemExit and the like end a loop, and here others wait for it
                log.exception("the loop of %s goes on", self._name)
        self._loop.close()
