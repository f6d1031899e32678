"""Connections to addresses that were checked: names are resolved here, once, and nothing else is connected to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpcore
import httpx

from pieray.concurrency.loop_shares import Shares, Who
from pieray.errors import Denied, PeerLost
from pieray.world.http.addresses import parse, refused

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Addresses of a host name, as text; raises OSError."""

MAX_ATTEMPTS = 4
"""Addresses of one name that are tried."""
OWN_LOOKUPS = 1
COMMON_LOOKUPS = 16
"""Lookups at one time, as `Shares` counts them; a thread is started for each that there are."""
MAX_RESOLVERS = 256


class SystemResolver:
    """The system's resolver, on threads of its own: it may take long, and cannot be interrupted.

    A name whose servers do not answer holds a thread for as long as the system waits, also when nobody waits for it
    any more; so it holds its tenant's place as long.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_RESOLVERS, "pieray-resolve")
        self.lookups = Shares(OWN_LOOKUPS, COMMON_LOOKUPS)

    async def look_up(self, who: Who, host: str, port: int) -> list[str]:
        """Addresses of a host name; raises OSError."""
        await self.lookups.take(who)
        try:
            looking = asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except BaseException:
            self.lookups.give(who)
            raise
        looking.add_done_callback(lambda found: self._ended(who, found))
        return list(dict.fromkeys(str(address[0]) for *_, address in await asyncio.shield(looking)))

    def _ended(self, who: Who, looking: asyncio.Future[Any]) -> None:
        self.lookups.give(who)
        if not looking.cancelled():
            looking.exception()  # seen, though nobody may wait for it any more

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Resolves, checks every address, connects to the first of exactly those that answers."""

    def __init__(self, resolve: Resolve, *, allow_private: bool) -> None:
        self._resolve = resolve
        self._allow_private = allow_private
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = [host] if parse(host) is not None else await self._look_up(host, port)
        if (bad := refused(found, allow_private=self._allow_private)) is not None:
            raise Denied(f"http: {host} has the address {bad}, which is not of the public internet")
        problem: Exception = PeerLost(f"http: {host} has no address")
        for address in found[:MAX_ATTEMPTS]:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem

    async def _look_up(self, host: str, port: int) -> list[str]:
        try:
            return await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise PeerLost(f"http: {host} cannot be resolved: {error}") from None


class CheckedTransport(httpx.AsyncBaseTransport):
    """One connection per request, checked as it is opened, closed with its response.  No proxies, no HTTP/2."""

    def __init__(self, backend: CheckedBackend, ssl_context: ssl.SSLContext) -> None:
        self._backend = backend
        self._ssl_context = ssl_context

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        connection = httpcore.AsyncHTTPConnection(
            url.origin, ssl_context=self._ssl_context, network_backend=self._backend
        )
        try:
            response = await connection.handle_async_request(
                httpcore.Request(request.method, url, headers=request.headers.raw, content=request.content)
            )
        except BaseException:
            await connection.aclose()
            raise
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response, connection))


class _Body(httpx.AsyncByteStream):
    """The body as it comes; closing it closes the connection."""

    def __init__(self, response: httpcore.Response, connection: httpcore.AsyncHTTPConnection) -> None:
        self._response = response
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_stream():
            yield part

    async def aclose(self) -> None:
        try:
            await self._response.aclose()
        finally:
            await self._connection.aclose()
