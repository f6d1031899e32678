"""The MCP servers that a client has brought with its launch: calls go over the client's connection."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from pieray.concurrency.loop_thread import LoopThread
from pieray.errors import PeerLost, PierayError, error_from
from pieray.messages import CancelCall, ClientAnswer, ClientCall
from pieray.transport import Connection

ATTACH_S = 15.0
"""How long a call waits for the client that has just launched the inferlet."""


class ClientServers:
    """Those of one inferlet.  `serve`, `answered` and `gone` are for reader threads; `ask` runs on the loop."""

    def __init__(self, instance_id: str, names: Sequence[str], loop: LoopThread) -> None:
        self.names = tuple(names)
        self._instance_id = instance_id
        self._loop = loop
        self._conn: Connection | None = None
        self._has_come = asyncio.Event()
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[str]] = {}

    def serve(self, conn: Connection) -> None:
        """The client answers over this connection from now on."""
        self._loop.call(self._set_connection, conn)

    def gone(self, conn: Connection) -> None:
        """The connection is over: calls that wait for it fail with PeerLost."""
        self._loop.call(self._lose, conn)

    def answered(self, conn: Connection, answer: ClientAnswer) -> None:
        self._loop.call(self._resolve, conn, answer)

    async def ask(self, server: str, tool: str, arguments: str) -> str:
        """The client's answer, JSON.  Raises what the client reports, PeerLost if it is gone or does not come."""
        conn = await self._connection()
        number = next(self._numbers)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            conn.send([ClientCall(number, self._instance_id, server, tool, arguments)], lane=self._instance_id)
            return await future
        except asyncio.CancelledError:
            if conn.is_open:
                conn.send([CancelCall(number, self._instance_id)], lane=self._instance_id)
            raise
        finally:
            del self._pending[number]

    async def _connection(self) -> Connection:
        if self._conn is None and not self._has_come.is_set():
            try:
                await asyncio.wait_for(self._has_come.wait(), ATTACH_S)
            except TimeoutError:
                raise PeerLost(f"mcp: the client has not come within {ATTACH_S:.0f} s to serve its tools") from None
        if self._conn is None:
            raise PeerLost("mcp: the client that brought this server is gone")
        return self._conn

    def _set_connection(self, conn: Connection) -> None:
        self._conn = conn
        self._has_come.set()
        if not conn.is_open:
            self._lose(conn)

    def _lose(self, conn: Connection) -> None:
        if self._conn is conn:
            self._conn = None
            for future in self._pending.values():
                _fail(future, PeerLost("mcp: the client that brought this server is gone"))

    def _resolve(self, conn: Connection, answer: ClientAnswer) -> None:
        future = self._pending.get(answer.call)
        if future is None or conn is not self._conn:
            return
        if answer.code:
            _fail(future, error_from(answer.code, answer.message))
        elif not future.done():
            future.set_result(answer.value)


def _fail(future: asyncio.Future[str], error: PierayError) -> None:
    if not future.done():
        future.set_exception(error)
