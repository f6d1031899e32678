"""Waiting for tickets: in the host if nothing else can run, else as futures of the event loop."""

from __future__ import annotations

import asyncio
from asyncio import events
from typing import Any

from . import _host
from ._loop import TicketLoop


def _alone_ms(loop: Any) -> int:
    """For how long nothing but the running coroutine can go on: it may block in the host in place of the loop."""
    return loop.alone_ms() if isinstance(loop, TicketLoop) else -1


async def wait_ticket(ticket: int, *, keep: bool = False) -> None:
    """Return once `ticket` has a result.  If cancelled meanwhile, the ticket is forgotten unless `keep`.

    Raises what the bindings raise, `Err`, or `Error`.
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
