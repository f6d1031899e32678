"""The client of this inferlet.

async for message in session:               # until it is cancelled: `break` on a word of your own
    session.send(message.upper())
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

from . import _convert, _host
from ._generation import Generation
from ._waiting import check_timeout, wait_ticket, within
from .tickets import take_text

#: Tickets of receives whose waiter gave up: the next receive takes them over, so that nothing is lost.
_left: list[int] = []
_left_files: list[int] = []
_host.at_install(_left.clear)
_host.at_install(_left_files.clear)


def send(text: str) -> None:
    """Send a message to the client; it does not wait."""
    _host.session.send(text)


async def stream(generation: Generation) -> str:
    """Collect a generation, and send each of its texts as it comes; the text.

    The same as iterating it and sending what comes, only that the engine passes the text on by itself where it can:
    this program is not woken for it.  Raises what `send` and the generation raise.
    """
    return await _convert.instance("generation", generation, Generation)._collect(sends=True)


def emit(name: str, value: Any = None) -> None:
    """Send a structured event: a name, and a value that JSON can hold.  Raises InvalidRequest, QuotaExceeded."""
    _host.session.emit(name, _convert.to_json(f"the value of event {_convert.text('name', name)!r}", value))


def send_file(path: str) -> None:
    """Send a file of the scratch folder to the client.  Raises NotFound, QuotaExceeded."""
    _host.session.send_file(path)


async def receive(timeout: float | None = None) -> str:
    """The client's next message.  Raises DeadlineExceeded (a TimeoutError) after `timeout` seconds."""
    return await _next(_left, _host.session.receive, "message", timeout)


async def receive_file(timeout: float | None = None) -> str:
    """Path, in the scratch folder, of the client's next file.  Raises DeadlineExceeded after `timeout` seconds."""
    return await _next(_left_files, _host.session.receive_file, "file", timeout)


async def messages() -> AsyncIterator[str]:
    """The client's messages as they come; `async for` over this module is the same."""
    while True:
        yield await receive()


async def _next(left: list[int], ask: Callable[[], int], what: str, timeout: float | None) -> str:
    check_timeout(timeout)
    ticket = left.pop(0) if left else ask()
    is_taken = False
    try:
        await within(wait_ticket(ticket, keep=True, is_long=True), timeout, f"no {what} from the client")
        is_taken = True
        return take_text(ticket)
    finally:
        if not is_taken:
            left.append(ticket)


class _Session(ModuleType):
    """This module, with `async for` over it."""

    def __aiter__(self) -> AsyncIterator[str]:
        return messages()


sys.modules[__name__].__class__ = _Session
