"""Waiting for tickets: in the host if nothing else can run, else as futures of the event loop."""

from __future__ import annotations

import asyncio
from asyncio import events
from typing import Any

from . import _host
from ._loop import TicketLoop


def _is_alone(loop: Any) -> bool:
    """Nothing but the running coroutine can go on: it may block in the host in place of the loop."""
    return not isinstance(loop, TicketLoop) or not (loop._ready or loop._tickets or loop._timers)


async def wait_ticket(ticket: int, *, keep: bool = False) -> None:
    """Return once `ticket` has a result.  If cancelled meanwhile, the ticket is forgotten unless `keep`.

    Raises what the bindings raise, `Err`, or `Error`.
    """
    loop: Any = events._get_running_loop()
    if _is_alone(loop):
        _host.tickets.wait([ticket], -1)
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
    waiting = tickets
    if _is_alone(events._get_running_loop()):
        while waiting:
            done = set(_host.tickets.wait(waiting, -1))
            waiting = [ticket for ticket in waiting if ticket not in done]
        return
    loop: Any = events._get_running_loop()
    futures = [loop._tickets.setdefault(ticket, asyncio.Future(loop=loop)) for ticket in tickets]
    try:
        for future in futures:
            await future
    except asyncio.CancelledError:
        for ticket in tickets:
            loop._tickets.pop(ticket, None)
        _host.tickets.cancel(tickets)
        raise
