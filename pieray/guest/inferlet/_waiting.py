"""Waiting for tickets: in the host if nothing else can run, else as futures of the event loop."""

from __future__ import annotations

import asyncio
from asyncio import events
from collections.abc import Coroutine
from typing import Any, TypeVar

from . import _convert, _host
from ._loop import TicketLoop
from .errors import DeadlineExceeded

T = TypeVar("T")


def _alone_ms(loop: Any) -> int:
    """For how long nothing but the running coroutine can go on: it may block in the host in place of the loop."""
    return loop.alone_ms() if isinstance(loop, TicketLoop) else -1


async def wait_ticket(ticket: int, *, keep: bool = False) -> None:
    """Return once `ticket` has a result.  If cancelled meanwhile, the ticket is forgotten unless `keep`.
    """
    loop: Any = events._get_running_loop()
    alone_ms = _alone_ms(loop)
    if alone_ms and _host.tickets.wait([ticket], alone_ms):
        return
    future: asyncio.Future[None] = asyncio.Future(loop=loop)
    loop._tickets[ticket] = future
    try:
        await future
    except asyncio.CancelledError:
        loop._tickets.pop(ticket, None)
        if not keep:
            _host.tickets.cancel([ticket])
        raise


async def wait_tickets(tickets: list[int]) -> None:
    """Return once all of `tickets` have a result.  If cancelled meanwhile, all are forgotten."""
    loop: Any = events._get_running_loop()
    waiting = tickets
    while waiting and (alone_ms := _alone_ms(loop)) and (done := _host.tickets.wait(waiting, alone_ms)):
        waiting = [ticket for ticket in waiting if ticket not in done]
    futures = [loop._tickets.setdefault(ticket, asyncio.Future(loop=loop)) for ticket in waiting]
    try:
        for future in futures:
            await future
    except asyncio.CancelledError:
        for ticket in tickets:
            loop._tickets.pop(ticket, None)
        _host.tickets.cancel(tickets)
        raise


def check_timeout(timeout: float | None) -> None:
    """Raise InvalidRequest unless `timeout` is None or a number of seconds from 0 on."""
    if timeout is not None:
        _convert.number("timeout", timeout, 0)


async def within(waiting: Coroutine[Any, Any, T], timeout: float | None, what: str) -> T:
    """What `waiting` gives.  Raises DeadlineExceeded, saying `what`, after `timeout` seconds; None: there is no end."""
    if timeout is None:
        return await waiting
    try:
        return await asyncio.wait_for(waiting, timeout)
    except DeadlineExceeded:
        raise
    except TimeoutError:
        raise DeadlineExceeded(f"{what} within {timeout} s") from None
