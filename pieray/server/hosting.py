"""The application hosted by uvicorn in this process."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from pieray.errors import ConfigError
from pieray.server.bodies import MOST_BYTES
from pieray.server.guard import HEAD_BYTES, Guard
from pieray.server.streams import STALL_S

HEAD_S = 10.0
"""For the head of a request to come, from the connection's begin or the first byte."""
IDLE_S = 30.0
"""A connection without a request is kept so long."""
PING_S = 20.0
"""How often a websocket's client is asked whether it lives, and how long it may take to answer."""
TICK_S = 0.1
END_S = 10.0
"""For what is to be put away at the end."""


class _Counted:
    """A transport, and how many bytes were written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.num_written = 0

    def write(self, data: bytes) -> None:
        self.num_written += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class PatientProtocol(H11Protocol):
    """uvicorn's, with limits of time for the head of a request to come, and for a client to take what it is sent.

    A connection that becomes a websocket has another protocol from then on, and is still looked at.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _num_taken = 0
    _taken_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._counted = _Counted(transport)
        super().connection_made(cast(asyncio.Transport, self._counted))
        self._begin_head()
        self._taken_at = self.loop.time()
        self._look_again()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end_head()
        elif self._head_timer is None and not self.transport.is_closing():
            self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._stall_timer = self.loop.call_later(STALL_S / 4, self._look)

    def _look(self) -> None:
        """Abort a connection whose client takes nothing: to close it would wait for the client for ever."""
        if self._counted.is_closing() and not self._counted.get_write_buffer_size():
            return
        waiting, now = self._counted.get_write_buffer_size(), self.loop.time()
        num_taken = self._counted.num_written - waiting
        if not waiting or num_taken > self._num_taken:
            self._num_taken, self._taken_at = num_taken, now
        elif now - self._taken_at >= STALL_S:
            self._counted.abort()
            return
        self._look_again()

    def _begin_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command line's."""
        yield


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound, before an engine is started for it.  Raises ConfigError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}") from None
    return bound


def serve(
    app: ASGIApp,
    guard: Guard,
    bound: socket.socket,
    *,
    wants_end: Callable[[], float | None],
    on_ready: Callable[[], None],
    on_end: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Answer requests until `wants_end` gives seconds: so long those under way may take to end, and then it returns.

    In the meantime new requests get 503.  `on_end` is awaited at the end, END_S at most.
    """
    _raise_file_limit()
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=PatientProtocol,
        ws="websockets-sansio",
        ws_max_size=MOST_BYTES,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        ws_per_message_deflate=False,  # what a client sends is as large as it says
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whoever comes from this machine may write what it likes there
        backlog=2048,
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )

    async def all_of_it() -> None:
        await _serve(_Server(config), guard, bound, wants_end, on_ready)
        if on_end is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await on_end()

    asyncio.run(all_of_it())


async def _serve(
    server: Any, guard: Guard, bound: socket.socket, wants_end: Callable[[], float | None], on_ready: Callable[[], None]
) -> None:
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    on_ready()
    while not serving.done() and (patience := wants_end()) is None:
        await asyncio.sleep(TICK_S)
    guard.is_draining = True
    deadline = asyncio.get_running_loop().time() + (patience or 0.0)
    while guard.num_running and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(TICK_S)
    server.should_exit = True
    await serving


def _raise_file_limit() -> None:
    """A connection is a file: as many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
