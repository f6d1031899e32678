"""One live connection to an MCP server, over the official library.

The library's contexts are entered and left by one task; that task is here, and others use the client it holds.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from pieray.errors import PeerLost
from pieray.world.mcp.spec import ServerSpec

log = logging.getLogger(__name__)

ANSWER_S = 3.0
START_S = 120.0
"""Until a server has answered the handshake: a command may have to be downloaded first."""

# A server must not outlive the process that runs it, even if that is killed: the kernel sees to it (Linux).
_TETHER = (
    "import ctypes, os, sys\n"
    "parent = int(sys.argv[1])\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9)\n"
    "if os.getppid() != parent: sys.exit(1)\n"
    "try: os.execvp(sys.argv[2], sys.argv[2:])\n"
    "except OSError as error: sys.exit(f'{sys.argv[2]}: {error}')\n"
)


class Connection:
    """Made on the event loop; opens itself.  `server` is a spec, or a server object of the library, run in here."""

    def __init__(self, name: str, server: Any) -> None:
        self._name = name
        self._server = server
        self._over = asyncio.Event()
        self._client: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._client.add_done_callback(lambda f: f.cancelled() or f.exception())  # seen, though nobody may ask
        self._task = asyncio.create_task(self._keep())

    @property
    def is_over(self) -> bool:
        """True from when the server's end, or ours, has closed it."""
        return self._over.is_set() or self._task.done()

    async def client(self) -> Any:
        """The library's client, once it is connected.  Raises PeerLost if it cannot be."""
        return await asyncio.shield(self._client)

    async def answers(self) -> bool:
        """Whether the server still does."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await (await self.client()).list_tools()
        except Exception:  # noqa: BLE001 - however it fails
            return False
        return not self.is_over

    def abandon(self) -> None:
        """Let it close by itself."""
        self._over.set()

    async def close(self) -> None:
        """Close it; a server that runs as a process has ended then."""
        self._over.set()
        if not self._client.done():
            self._task.cancel()
        await asyncio.wait([self._task])

    async def _keep(self) -> None:
        try:
            make = await asyncio.to_thread(_library)
            async with asyncio.timeout(START_S) as starting:
                async with make(self._server, self._over.set) as client:
                    starting.reschedule(None)
                    self._client.set_result(client)
                    await self._over.wait()
        except asyncio.CancelledError:
            self._fail("it was stopped")
            raise
        except Exception as error:  # noqa: BLE001 - servers fail in many ways, each is told to who waits
            self._fail(_text(error))
        finally:
            self._over.set()
            self._fail("it has ended")

    def _fail(self, reason: str) -> None:
        if not self._client.done():
            self._client.set_exception(PeerLost(f"mcp: server {self._name!r} does not start: {reason}"))
        else:
            log.debug("MCP server %s: %s", self._name, reason)


def _library() -> Callable[[Any, Callable[[], None]], Any]:
    """What makes clients; imported off the loop, for it takes a while."""
    from mcp import Client

    def make(server: Any, on_end: Callable[[], None]) -> Any:
        if not isinstance(server, ServerSpec):
            return Client(server)
        return Client(_watched(_transport(server), on_end), cache=None)

    return make


def _transport(spec: ServerSpec) -> Any:
    from mcp import StdioServerParameters, stdio_client

    if spec.url:
        return _over_http(spec)
    import os

    words = ["-I", "-S", "-c", _TETHER, str(os.getpid()), *spec.command]
    parameters = StdioServerParameters(command=sys.executable, args=words, env=dict(spec.env), cwd=spec.cwd)
    return stdio_client(parameters, errlog=sys.__stderr__ or sys.stderr)


@asynccontextmanager
async def _over_http(spec: ServerSpec) -> AsyncIterator[tuple[Any, Any]]:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    timeout = httpx2.Timeout(30.0, read=300.0)  # an answer may be a stream that is held open
    async with (
        httpx2.AsyncClient(headers=dict(spec.headers), timeout=timeout) as client,
        streamable_http_client(spec.url, http_client=client) as (read, write),
    ):
        yield read, write


@asynccontextmanager
async def _watched(transport: Any, on_end: Callable[[], None]) -> AsyncIterator[tuple[Any, Any]]:
    """The transport, telling when the server's end is closed, even while nobody calls it."""
    async with transport as (read, write):
        yield _Watched(read, on_end), write


class _Watched:
    """A read stream that tells when its reader leaves it, which is at its end."""

    def __init__(self, stream: Any, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end

    async def __aenter__(self) -> _Watched:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> Any:
        self._on_end()
        return await self._stream.__aexit__(*error)

    def __aiter__(self) -> Any:
        return self._stream.__aiter__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _text(error: BaseException) -> str:
    """The first plain error in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
