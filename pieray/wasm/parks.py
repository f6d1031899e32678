"""What a guest waits for: made when it blocks, asked again at each wake-up.

A guest blocks in `tickets.wait`, in a WASI sleep, and in a handler that has given a Future, and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pieray.arrays import U32
from pieray.errors import PierayError
from pieray.wasm.codecs import Encoder, encode_u32s, error_result, ok_image
from pieray.wasm.handlers import Tickets

if TYPE_CHECKING:
    from pieray.wasm.guest import Guest

log = logging.getLogger(__name__)


class Park(Protocol):
    """A blocked call of a guest.  `deadline` (time.monotonic) is when `resolve` gives an image at the latest."""

    deadline: float | None

    def resolve(self) -> bytes | None:
        """The image of the call's result, or None: still blocked.  Never raises."""
        ...

    def abandon(self) -> None:
        """The guest has ended meanwhile."""


class TicketPark:
    """`tickets.wait`: ends when one of the tickets has a result, or at the deadline with none."""

    __slots__ = ("_handlers", "_tickets", "deadline")

    def __init__(self, handlers: Tickets, tickets: U32, timeout_ms: int) -> None:
        self._handlers = handlers
        self._tickets = tickets
        self.deadline = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1e3

    def resolve(self) -> bytes | None:
        try:
            ready = self._handlers.ready(self._tickets) if len(self._tickets) else []
            if ready or (self.deadline is not None and time.monotonic() >= self.deadline):
                return ok_image(encode_u32s(ready))
            return None
        except PierayError as error:
            return error_result(error)
        except BaseException as error:
            log.exception("tickets.ready failed")
            return error_result(PierayError(f"tickets.ready failed: {error!r}"))

    def abandon(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler's Future yields: the call's value or its error, and the CPU time that it took elsewhere."""

    value: Any
    cpu_time_s: float = 0.0
    error: PierayError | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """What a handler gives in place of a value that is not there yet."""

    look: Callable[[], Any]
    """The value; None: not yet.  Raises what the handler may raise."""
    give_up: Callable[[], Any]
    """The value when the time is over."""
    deadline: float | None
    """time.monotonic; None: only the inferlet's own end."""


class LaterPark:
    """A handler's call whose value is to come."""

    __slots__ = ("_encode", "_later", "deadline")

    def __init__(self, later: Later, encode: Encoder) -> None:
        self._later, self._encode = later, encode
        self.deadline = later.deadline

    def resolve(self) -> bytes | None:
        try:
            value = self._later.look()
            if value is None and self.deadline is not None and time.monotonic() >= self.deadline:
                value = self._later.give_up()
            return None if value is None else self._encode(value)
        except PierayError as error:
            return error_result(error)
        except BaseException as error:
            log.exception("a handler's wait failed")
            return error_result(PierayError(f"a handler's wait failed: {error!r}"))

    def abandon(self) -> None: ...


class FuturePark:
    """A handler's call that is worked on elsewhere: ends when that is done.  Its CPU time is charged to the guest."""

    __slots__ = ("_encode", "_future", "_guest", "deadline")

    def __init__(self, guest: Guest, future: Future[Answer], encode: Encoder) -> None:
        self._guest, self._future, self._encode = guest, future, encode
        self.deadline: float | None = None  # who works on it has one
        future.add_done_callback(lambda _: guest.unpark())

    def resolve(self) -> bytes | None:
        if not self._future.done():
            return None
        try:
            answer = self._future.result()
            self._guest.charge(answer.cpu_time_s)
            return error_result(answer.error) if answer.error is not None else self._encode(answer.value)
        except PierayError as error:
            return error_result(error)
        except BaseException as error:
            log.exception("a handler's work failed")
            return error_result(PierayError(f"a handler's work failed: {error!r}"))

    def abandon(self) -> None:
        self._future.cancel()


class SleepPark:
    """A WASI `poll` or `block` over pollables that become ready at `times` (time.monotonic)."""

    __slots__ = ("_gives_list", "_times", "deadline")

    def __init__(self, times: list[float], *, gives_list: bool) -> None:
        self._times = times
        self._gives_list = gives_list
        self.deadline: float | None = min(times)

    def resolve(self) -> bytes | None:
        now = time.monotonic()
        ready = [i for i, t in enumerate(self._times) if t <= now]
        if not ready:
            return None
        return encode_u32s(ready) if self._gives_list else b""

    def abandon(self) -> None: ...
