"""Messages between inferlets of a tenant, wherever they run.  Capability: messaging.

A queue gives each text to one `pull`; a topic gives each text to every subscription.  Both exist by being used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from types import TracebackType
from typing import Any

from . import _convert, _host
from ._waiting import check_timeout, within
from .tickets import Ticket, take_none, take_text, take_tokens

TIMEOUT_S = 30.0


def push_ticket(queue: str, text: str, timeout: float = TIMEOUT_S) -> Ticket[None]:
    """As `push`, without waiting for it."""
    ms = _convert.milliseconds("timeout", timeout, 0xFFFFFFFF)
    return Ticket(_host.messaging.push(queue, text, ms), take_none)


def pull_ticket(queue: str) -> Ticket[str]:
    """As `pull`, without waiting for it; a ticket that is cancelled leaves the text to others."""
    return Ticket(_host.messaging.pull(queue), take_text)


def broadcast_ticket(topic: str, text: str, timeout: float = TIMEOUT_S) -> Ticket[None]:
    """As `broadcast`, without waiting for it."""
    ms = _convert.milliseconds("timeout", timeout, 0xFFFFFFFF)
    return Ticket(_host.messaging.broadcast(topic, text, ms), take_none)


async def push(queue: str, text: str, timeout: float = TIMEOUT_S) -> None:
    """Put a text at the end of a queue.  Raises DeadlineExceeded if there is no room within `timeout` seconds."""
    await push_ticket(queue, text, timeout)


async def pull(queue: str, timeout: float | None = None) -> str:
    """The text at the front of a queue.  Raises DeadlineExceeded if none comes within `timeout` seconds.

    What was given to a pull that is cancelled, or to an inferlet that ends before it has taken it, goes to the next.
    """
    check_timeout(timeout)
    return await within(_result(pull_ticket(queue)), timeout, f"nothing came to queue {queue!r}")


async def broadcast(topic: str, text: str, timeout: float = TIMEOUT_S) -> None:
    """Give a text to every subscription that there is now.

    Raises DeadlineExceeded if some has no room for it within `timeout` seconds; then nobody has got it.
    """
    await broadcast_ticket(topic, text, timeout)


class Subscription:
    """Every text that is broadcast to a topic while it is open, in order: iterate it, or await `next`."""

    def __init__(self, topic: str, handle: int) -> None:
        self.topic = topic
        self._handle = handle
        self._is_open = True

    def next_ticket(self) -> Ticket[str]:
        """As `next`, without waiting for it."""
        return Ticket(_host.messaging.next(self._handle), take_text)

    async def next(self, timeout: float | None = None) -> str:
        """The next text.  Raises DeadlineExceeded if none comes within `timeout` seconds."""
        check_timeout(timeout)
        return await within(_result(self.next_ticket()), timeout, f"nothing came to topic {self.topic!r}")

    def close(self) -> None:
        """Read no more; idempotent."""
        if self._is_open:
            self._is_open = False
            _host.messaging.unsubscribe(self._handle)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if not self._is_open:
            raise StopAsyncIteration
        return await self.next()


class _Subscribing:
    """What `subscribe` returns: to be awaited, or entered with `async with`."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._found: Subscription | None = None

    def _ask(self) -> Ticket[list[int]]:
        return Ticket(_host.messaging.subscribe(self._topic), take_tokens)

    async def _open(self) -> Subscription:
        (handle,) = await self._ask()
        return Subscription(self._topic, handle)

    def __await__(self) -> Generator[Any, None, Subscription]:
        return self._open().__await__()

    async def __aenter__(self) -> Subscription:
        self._found = await self._open()
        return self._found

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._found is not None:
            self._found.close()


def subscribe(topic: str) -> _Subscribing:
    """Subscribe: `async with subscribe(topic) as texts`, or `texts = await subscribe(topic)`."""
    return _Subscribing(topic)


async def _result(ticket: Ticket[str]) -> str:
    return await ticket
