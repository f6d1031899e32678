"""The client of this inferlet."""

from __future__ import annotations

import asyncio

from . import _host
from ._waiting import wait_ticket
from .errors import DeadlineExceeded, raises
from .tickets import take_text

#: Tickets of receives whose waiter gave up: the next receive takes them over, so that no message is lost.
_left: list[int] = []


@raises
def send(text: str) -> None:
    """Send a message to the client; it does not wait."""
    _host.session.send(text)


@raises
def _ask() -> int:
    return int(_host.session.receive())


async def receive(timeout: float | None = None) -> str:
    """The client's next message.  Raises DeadlineExceeded (a TimeoutError) after `timeout` seconds."""
    ticket = _left.pop() if _left else _ask()
    is_taken = False
    try:
        if timeout is None:
            await wait_ticket(ticket, keep=True)
        else:
            await asyncio.wait_for(wait_ticket(ticket, keep=True), timeout)
        is_taken = True
        return str(take_text(ticket))
    except TimeoutError:
        raise DeadlineExceeded(f"no message from the client within {timeout} s") from None
    finally:
        if not is_taken:
            _left.append(ticket)
