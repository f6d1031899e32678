"""Answers that come bit by bit, and clients that leave."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pieray.client.process import Process
from pieray.errors import PierayError

log = logging.getLogger(__name__)
T = TypeVar("T")

STALL_S = 60.0
"""A client that takes nothing for so long has left."""
HEARTBEAT_S = 15.0
"""A stream that has nothing to say for so long sends a comment, so that no proxy takes it for dead."""
KILL_TRIES = 2


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves before; raises ClientDisconnect then."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientDisconnect
    finally:
        await cancelled(doing, gone)


async def until_gone(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """Server-sent events.  `at_end` is called once, however this ends: also when the client leaves, or stalls."""

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], at_end: Callable[[], None], headers: Mapping[str, str]
    ) -> None:
        self._chunks = chunks
        self._at_end = at_end
        self._blocked_at = 0.0
        """By the loop's clock, since when a piece waits for the client; 0: none does."""
        self._sent_at = math.inf
        """When the last piece was sent; inf before the first and after the last."""
        self._turn = asyncio.Lock()
        self.status_code = 200
        self.background = None
        self.init_headers(
            {
                **headers,
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-store",
                "x-accel-buffering": "no",
            }
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI has it
        """Send all; raises TimeoutError if the client takes nothing for STALL_S: the connection is closed then."""
        sending, gone = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(until_gone(receive))
        beating = asyncio.ensure_future(self._beat(send))
        try:
            while True:
                done, _ = await asyncio.wait({sending, gone}, timeout=STALL_S / 4, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    break
                if self._blocked_at and asyncio.get_running_loop().time() - self._blocked_at > STALL_S:
                    raise TimeoutError(f"the client has taken nothing for {STALL_S:g} s")
            if sending.done():
                sending.result()
        finally:
            try:
                await cancelled(sending, gone, beating)
            finally:  # whoever is cancelled while it waits there too
                self._at_end()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._sent_at = asyncio.get_running_loop().time()
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await self._put(send, chunk)
        async with self._turn:
            self._sent_at = math.inf
            await send({"type": "http.response.body", "body": b""})

    async def _put(self, send: Send, chunk: bytes) -> None:
        now = asyncio.get_running_loop().time
        async with self._turn:
            self._blocked_at = now()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._blocked_at, self._sent_at = 0.0, now()

    async def _beat(self, send: Send) -> None:
        """A comment whenever nothing has been sent for HEARTBEAT_S."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(HEARTBEAT_S / 3)
            if not self._turn.locked() and now() - self._sent_at >= HEARTBEAT_S:
                await self._put(send, b": still here\n\n")


def kill_soon(process: Process) -> None:
    """End an inferlet that nobody waits for any more, if it runs.

    Returns at once: what there is to do is done on a thread.
    """

    def end() -> None:
        for _ in range(KILL_TRIES):
            try:
                process.kill("its client has left")
                break
            except PierayError as error:
                log.debug("%s is not ended: %s", process.id, error)

    if not process.is_done:
        threading.Thread(target=end, name="pieray-door-end", daemon=True).start()
