"""WIT interface `mcp`: tools of MCP servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pieray.errors import DeadlineExceeded, Denied, InvalidRequest, NotFound, QuotaExceeded
from pieray.host.handlers.slow_work import SlowWork
from pieray.host.identity import Identity
from pieray.host.services import Services
from pieray.host.session.client_servers import ClientServers
from pieray.host.ticket_work import LoopCalls, TicketWork
from pieray.texts import byte_size, check_size, check_unicode, parse_json

MAX_RUNNING = 32
"""Calls of one inferlet at one time."""

Ask = Callable[[str, str, str], Awaitable[str]]


class McpHandlers:
    """The client's servers come before the operator's of the same name."""

    def __init__(
        self, identity: Identity, services: Services, clients: ClientServers, slow: SlowWork, work: TicketWork
    ) -> None:
        self._identity = identity
        self._operators = services.mcp
        self._clients = clients
        self._slow = slow
        self._num_calls = 0
        self._calls = LoopCalls(work, services.loop, "mcp calls", MAX_RUNNING)

    def servers(self) -> list[str]:
        """Those that the inferlet may call; none without the capability."""
        allowed = self._identity.capabilities.mcp
        return [name for name in self._names() if "*" in allowed or name in allowed]

    def tools(self, server: str) -> int:
        return self._start(server, "", "{}")

    def call(self, server: str, tool: str, arguments: str) -> int:
        if not tool:
            raise InvalidRequest("the name of a tool is not empty")
        self._slow.check_text(arguments)  # it is parsed here
        _check_object(arguments)
        return self._start(server, tool, arguments)

    def _names(self) -> list[str]:
        operators = self._operators.names if self._operators is not None else []
        return sorted({*self._clients.names, *operators})

    def _start(self, server: str, tool: str, arguments: str) -> int:
        limit = self._identity.limits.mcp_calls
        self._identity.capabilities.require("mcp")
        if server not in self._names():
            raise NotFound(f"mcp: no server {server[:100]!r}; there are: {', '.join(self.servers()) or 'none'}")
        if server not in self.servers():
            raise Denied(f"mcp: the inferlet's manifest does not name the server {server!r}")
        if self._num_calls >= limit:
            raise QuotaExceeded(f"mcp_calls: the limit is {limit}; one more was asked for")
        self._num_calls += 1
        ask = self._ask_of(server)
        return self._calls.start(lambda: self._ask(ask, server, tool, arguments))

    def _ask_of(self, server: str) -> Ask:
        if server in self._clients.names:
            return self._clients.ask
        return self._ask_operators

    async def _ask_operators(self, server: str, tool: str, arguments: str) -> str:
        servers = self._operators
        assert servers is not None
        async with servers.calls(server).place(self._identity.who):
            return await servers.ask(server, tool, arguments)

    async def _ask(self, ask: Ask, server: str, tool: str, arguments: str) -> str:
        limits = self._identity.limits
        try:
            async with asyncio.timeout(limits.mcp_time_s) as allowed:
                answer = await ask(server, tool, arguments)
        except TimeoutError:
            if not allowed.expired():
                raise
            raise DeadlineExceeded(
                f"mcp_time_s: the limit is {limits.mcp_time_s}; server {server!r} has not answered by then"
            ) from None
        check_size("message_bytes", limits.message_bytes, byte_size(answer), f"the answer of server {server!r}")
        return answer


def _check_object(text: str) -> None:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise InvalidRequest(f"the arguments of a tool are a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"the arguments of a tool are a JSON object; given {text[:100]}")
    check_unicode("the arguments of a tool", text, found)
