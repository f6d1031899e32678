"""A running inferlet, as its client holds it."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pieray.concurrency.deadlines import Deadline
from pieray.concurrency.off_loop import off_loop
from pieray.errors import DeadlineExceeded, PierayError, error_from

if TYPE_CHECKING:
    import asyncio

ENDINGS = ("result", "error")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing an inferlet did.

    `kind` is "text" (it sent a message), "data" (`text` is JSON {name, value}), "file" (`text` is JSON {name, size,
    offset, data: base64}, a part of a file), "log" (`text` is "level: line"), "result" (`text` is JSON) or "error"
    (`text` is JSON {code, message}); the last two end it.
    """

    kind: str
    text: str
    number: int


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A file that an inferlet has sent.  `name` is the inferlet's: no path to be trusted."""

    name: str
    data: bytes


class Link(Protocol):
    """The connection to the InferletActor that hosts the process."""

    def send_text(self, instance_id: str, text: str, timeout: float | None) -> None: ...

    def send_file(self, instance_id: str, name: str, data: bytes, timeout: float | None) -> None: ...

    def kill(self, instance_id: str, reason: str, timeout: float | None) -> None: ...

    def usage(self, instance_id: str, timeout: float | None) -> dict[str, int]: ...


class Process:
    """Handle of a running inferlet.  Iterating gives its texts as they come; `result` its return value.

    Every `timeout` is in seconds; None and inf wait for ever, what has passed (0 and below) raises DeadlineExceeded
    where it would wait, NaN raises InvalidRequest.
    Thread-safe.  Each iterator starts from the first event, so several may read the same process.  On an event loop:
    `async for`, `await process` or `wait`, `aevents`, `asend`, `asend_file`, `ausage`, `akill`.
    """

    def __init__(self, instance_id: str, name: str, link: Link) -> None:
        self.id = instance_id
        self.name = name
        self._link = link
        self._events: list[Event] = []
        self._lost: PierayError | None = None
        self._changed = threading.Condition()
        self._at_end: Callable[[], None] | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def __repr__(self) -> str:
        state = "ended" if self.is_done else "running"
        return f"<Process {self.name} {self.id} {state}>"

    @property
    def is_done(self) -> bool:
        """True once the result or the error is here, or the connection to the inferlet is lost."""
        return self._lost is not None or self._has_ended

    @property
    def _has_ended(self) -> bool:
        return bool(self._events) and self._events[-1].kind in ENDINGS

    def send(self, text: str, timeout: float | None = 30.0) -> None:
        """Send a message to the inferlet; returns when it is in its mailbox.

        Raises QuotaExceeded (mailbox full), Cancelled (the inferlet has ended), DeadlineExceeded, PeerLost.
        """
        self._link.send_text(self.id, text, timeout)

    def send_file(self, name: str, data: bytes | str | PathLike[str], timeout: float | None = 120.0) -> None:
        """Send a file: its bytes, or the path of a file of this machine.  It lands in the inferlet's scratch folder
        as `in/NAME`, and `session.receive_file` there gives the path.

        Raises InvalidRequest (a name that is no relative path), QuotaExceeded (the scratch folder is full),
        Cancelled (the inferlet has ended), DeadlineExceeded, PeerLost, OSError.
        """
        content = data if isinstance(data, bytes) else Path(data).read_bytes()
        self._link.send_file(self.id, name, content, timeout)

    def files(self) -> list[ReceivedFile]:
        """The files that the inferlet has sent so far, whole ones, in order."""
        return received_files([e for e in self._events if e.kind == "file"])

    def kill(self, reason: str = "killed by its client", timeout: float | None = 30.0) -> None:
        """End the inferlet now; its result raises Cancelled.  Killing one that has ended does nothing.

        Raises PeerLost (the connection is lost, or the engine handle is closed: the inferlet may run on),
        DeadlineExceeded.
        """
        if not self._has_ended:
            self._link.kill(self.id, reason, timeout)

    def usage(self, timeout: float | None = 30.0) -> dict[str, int]:
        """What the inferlet has used so far, or has used, if it has ended: tokens_computed, tokens_found (they were
        there already) and pages_swapped (given up for others for a while), as `runtime.usage` tells it.

        Raises NotFound (it ended long ago), PeerLost, DeadlineExceeded.
        """
        return self._link.usage(self.id, timeout)

    async def asend(self, text: str, timeout: float | None = 30.0) -> None:
        """`send` for an event loop."""
        await off_loop(self.send, text, timeout)

    async def asend_file(self, name: str, data: bytes | str | PathLike[str], timeout: float | None = 120.0) -> None:
        """`send_file` for an event loop."""
        await off_loop(self.send_file, name, data, timeout)

    async def ausage(self, timeout: float | None = 30.0) -> dict[str, int]:
        """`usage` for an event loop."""
        return await off_loop(self.usage, timeout)

    async def akill(self, reason: str = "killed by its client", timeout: float | None = 30.0) -> None:
        """`kill` for an event loop."""
        await off_loop(self.kill, reason, timeout)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and return what `main` returned; raises the inferlet's typed error.

        Raises DeadlineExceeded after `timeout` seconds; the inferlet runs on then.
        """
        deadline = Deadline(timeout)
        with self._changed:
            while not self.is_done:
                deadline.check(f"{self.name} {self.id} has not ended")
                self._changed.wait(deadline.left_s())
        return self._outcome()

    def _outcome(self) -> Any:
        return json.loads(self.ending().text)

    def ending(self) -> Event:
        """The "result" event of one that has ended, its JSON as it came; raises the inferlet's typed error, as `result`
        does, and DeadlineExceeded if it has not ended.
        """
        last = self._events[-1] if self._events else None
        if last is not None and last.kind == "result":
            return last
        if last is not None and last.kind == "error":
            problem = json.loads(last.text)
            raise error_from(problem["code"], problem["message"])
        if self._lost is None:
            raise DeadlineExceeded(f"{self.name} {self.id} has not ended")
        raise type(self._lost)(self._lost.message)  # an error of its own for each who waits

    def seen(self) -> list[Event]:
        """The events that have come so far."""
        return list(self._events)

    @property
    def logs(self) -> list[str]:
        """Log lines so far, each "level: line"."""
        return [e.text for e in self._events if e.kind == "log"]

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """All events from the first, as they come, up to the one that ends the inferlet.

        Raises at the end, as `result` does, if the inferlet failed or the connection to it is lost.  Raises
        DeadlineExceeded if the next one does not come within `timeout` seconds; the inferlet runs on then.
        """
        number = 0
        while True:
            deadline = Deadline(timeout)
            with self._changed:
                while number >= len(self._events) and not self.is_done:
                    deadline.check(f"no event of {self.name} {self.id} has come")
                    self._changed.wait(deadline.left_s())
                fresh, is_done = self._events[number:], self.is_done
            yield from fresh
            number += len(fresh)
            if is_done:
                self.ending()
                return

    def __iter__(self) -> Iterator[Event]:
        """Texts as they come; raises at the end, as `result` does, if the inferlet failed."""
        return (event for event in self.events() if event.kind == "text")

    async def aevents(self, timeout: float | None = None) -> AsyncGenerator[Event, None]:
        """`events` for an event loop."""
        import asyncio  # here and below: it takes longer to import than all of this package

        changed = asyncio.Event()
        waiter = (asyncio.get_running_loop(), changed)
        number = 0
        with self._changed:
            self._waiters.append(waiter)
        try:
            while True:
                changed.clear()
                with self._changed:
                    fresh, is_done = self._events[number:], self.is_done
                for event in fresh:
                    yield event
                number += len(fresh)
                if is_done:
                    self.ending()
                    return
                deadline = Deadline(timeout)
                try:
                    async with asyncio.timeout(deadline.allowed_s) as allowed:
                        await changed.wait()
                except TimeoutError:
                    if not allowed.expired():
                        raise
                    raise deadline.error(f"no event of {self.name} {self.id} has come") from None
        finally:
            with self._changed:
                self._waiters.remove(waiter)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """`__iter__` for an event loop."""
        async with contextlib.aclosing(self.aevents()) as events:
            async for event in events:
                if event.kind == "text":
                    yield event

    def __await__(self) -> Generator[Any, None, Any]:
        """`await process` waits for the end and gives the result, as `wait` without a timeout."""
        return self.wait().__await__()

    async def wait(self, timeout: float | None = None) -> Any:
        """`result` for an event loop."""
        import asyncio

        deadline = Deadline(timeout)
        try:
            async with asyncio.timeout(deadline.allowed_s) as allowed:
                await self.until_ended()
        except TimeoutError:
            if not allowed.expired():
                raise
            raise deadline.error(f"{self.name} {self.id} has not ended") from None
        return self._outcome()

    async def until_ended(self) -> None:
        """Wait for the end, whatever it is; `ending` and `result` tell it."""
        with contextlib.suppress(PierayError):
            async for _ in self.aevents():
                pass

    # --- called by the link, on its reader thread ----------------------------------------------

    @property
    def num_events(self) -> int:
        """How many events have come."""
        return len(self._events)

    def add(self, events: list[Event]) -> None:
        """Events from the actor; those already here are skipped, and those that are not next will come again."""
        with self._changed:
            for event in events:
                if event.number == len(self._events):
                    self._events.append(event)
            self._notify()

    def lose(self, error: PierayError) -> None:
        """The actor is gone: whoever waits gets `error`."""
        with self._changed:
            if not self.is_done:
                self._lost = error
                self._notify()

    def at_end(self, call: Callable[[], None]) -> None:
        """Call it once, when `is_done` is; at once if it is already."""
        with self._changed:
            if not self.is_done:
                self._at_end = call
                return
        call()

    def _notify(self) -> None:
        self._changed.notify_all()
        if self.is_done and (call := self._at_end) is not None:
            self._at_end = None
            call()
        for loop, event in self._waiters:
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits there
                loop.call_soon_threadsafe(event.set)


def received_files(events: Iterable[Event]) -> list[ReceivedFile]:
    """Files from their "file" events; one whose last part has not come is left out."""
    found: list[ReceivedFile] = []
    data = bytearray()
    for event in events:
        part = json.loads(event.text)
        if part["offset"] == 0:
            data = bytearray()
        data += base64.b64decode(part["data"])
        if len(data) == part["size"]:
            found.append(ReceivedFile(part["name"], bytes(data)))
    return found
