"""Waiting for tickets: in the host if nothing else can run, else as futures of the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import events
from collections.abc import Coroutine
from typing import Any, TypeVar

from . import _convert, _host
from ._idle import PATIENCE_MS, held
from ._loop import LONG_MS, TicketLoop
from .errors import DeadlineExceeded, Error

T = TypeVar("T")


def _alone_ms(loop: Any) -> int:
    """For how long nothing but the running coroutine can go on: it may block in the host in place of the loop."""
    return loop.alone_ms() if isinstance(loop, TicketLoop) else -1


def alone_for_ms() -> int:
    """How long the running coroutine may wait in the host, in place of the loop: -1 for ever, 0 not at all."""
    return _alone_ms(events._get_running_loop())


async def wait_ticket(ticket: int, *, keep: bool = False, is_long: bool = False) -> None:
    """Return once `ticket` has a result; any number of tasks may wait for it.

    If the last of them is cancelled, the ticket is forgotten unless `keep`.  Raises `Error` for a ticket that is not
    open, or is closed meanwhile.  `is_long`: others may have the memory for as long as nothing else is waited for.
    """
    loop: Any = events._get_running_loop()
    alone_ms = _alone_ms(loop)
    is_told = False
    if alone_ms:
        if is_long and held.is_to_be_told() and not 0 < alone_ms < LONG_MS:
            if _host.tickets.wait([ticket], PATIENCE_MS):
                return
            held.tell_idle()
            is_told, alone_ms = True, _alone_ms(loop)
        if _host.tickets.wait([ticket], alone_ms):
            return
    wait = loop.wait_for_long(ticket, is_told=is_told) if is_long else loop.wait_for(ticket)
    try:
        await wait.future
    except asyncio.CancelledError:
        if wait.leave() and not keep:
            _forget([ticket])
        raise
    except BaseException:
        wait.leave()
        raise
    wait.leave()


async def wait_tickets(tickets: list[int]) -> None:
    """Return once all of `tickets` have a result.  If cancelled meanwhile, those that nobody else waits for are
    forgotten."""
    loop: Any = events._get_running_loop()
    waiting = tickets
    while waiting and (alone_ms := _alone_ms(loop)) and (done := _host.tickets.wait(waiting, alone_ms)):
        waiting = [ticket for ticket in waiting if ticket not in done]
    waits = {ticket: loop.wait_for(ticket) for ticket in waiting}
    try:
        for wait in waits.values():
            await wait.future
    except asyncio.CancelledError:
        shared = {ticket for ticket, wait in waits.items() if not wait.leave()}
        _forget([ticket for ticket in tickets if ticket not in shared])
        raise
    except BaseException:
        for wait in waits.values():
            wait.leave()
        raise
    for wait in waits.values():
        wait.leave()


def _forget(tickets: list[int]) -> None:
    for ticket in tickets:
        with contextlib.suppress(Error):  # another task has taken it, or has forgotten it
            _host.tickets.cancel([ticket])


def wake_waiters(ticket: int, error: Exception | None = None) -> None:
    """The ticket's result was taken, or it was given up (`error`): whoever waits for it is told."""
    loop = events._get_running_loop()
    if isinstance(loop, TicketLoop):
        loop.end_waits(ticket, error)


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
