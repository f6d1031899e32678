"""The application hosted by uvicorn in this process."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from pieray.errors import ConfigError
from pieray.server.guard import HEAD_BYTES, Guard

HEAD_S = 10.0
"""For the head of a request to come, from the connection's begin or the first byte."""
IDLE_S = 30.0
"""A connection without a request is kept so long."""
TICK_S = 0.1


class PatientProtocol(H11Protocol):
    """uvicorn's, with a limit of time for the head of a request: it has none of its own."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end_head()
        elif self._head_timer is None and not self.transport.is_closing():
            self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

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
) -> None:
    """Answer requests until `wants_end` gives seconds: so long those under way may take to end, and then it returns.

    In the meantime new requests get 503.
    """
    _raise_file_limit()
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=2048,
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    asyncio.run(_serve(_Server(config), guard, bound, wants_end, on_ready))


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
