"""WIT interface `mcp`: tools of MCP servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from pieray.errors import DeadlineExceeded, Denied, InvalidRequest, NotFound, QuotaExceeded
from pieray.host import aio
from pieray.host.handlers.base import HandlerGroup
from pieray.host.session import byte_size
from pieray.host.state import InstanceState

MAX_RUNNING = 16
"""Calls of one inferlet at one time."""

Ask = Callable[[str, str, str], Awaitable[str]]


class McpHandlers(HandlerGroup):
    """The client's servers come before the operator's of the same name."""

    def __init__(self, state: InstanceState) -> None:
        super().__init__(state)
        self._num_calls = 0
        self._num_tool_calls = 0

    def mcp_servers(self) -> list[str]:
        """Those that the inferlet may call; none without the capability."""
        allowed = self._state.capabilities.mcp
        return [name for name in self._names() if "*" in allowed or name in allowed]

    def mcp_tools(self, server: str) -> int:
        return self._start(server, "", "{}")

    def mcp_call(self, server: str, tool: str, arguments: str) -> int:
        if not tool:
            raise InvalidRequest("the name of a tool is not empty")
        self._check_text_size(arguments)  # it is parsed here
        _check_object(arguments)
        return self._start(server, tool, arguments)

    def _names(self) -> list[str]:
        state = self._state
        operators = state.services.mcp.names if state.services.mcp is not None else []
        return sorted({*state.client_servers.names, *operators})

    def _start(self, server: str, tool: str, arguments: str) -> int:
        state = self._state
        state.capabilities.require("mcp")
        if server not in self._names():
            raise NotFound(f"mcp: no server {server[:100]!r}; there are: {', '.join(self.mcp_servers()) or 'none'}")
        if server not in self.mcp_servers():
            raise Denied(f"mcp: the inferlet's manifest does not name the server {server!r}")
        if self._num_calls >= state.limits.mcp_calls:
            raise QuotaExceeded(f"mcp_calls: the limit is {state.limits.mcp_calls}; one more was asked for")
        self._num_calls += 1
        ask = self._ask_of(server)
        return aio.start(state, state.services.loop, lambda: self._call(ask, server, tool, arguments))

    def _ask_of(self, server: str) -> Ask:
        state = self._state
        if server in state.client_servers.names:
            return state.client_servers.ask
        assert state.services.mcp is not None
        return state.services.mcp.ask

    async def _call(self, ask: Ask, server: str, tool: str, arguments: str) -> str:
        limits = self._state.limits
        if self._num_tool_calls >= MAX_RUNNING:
            raise QuotaExceeded(f"mcp: the limit is {MAX_RUNNING} calls of one inferlet at one time; "
                                "one more was asked for")  # fmt: skip
        self._num_tool_calls += 1
        try:
            async with asyncio.timeout(limits.mcp_time_s) as allowed:
                answer = await ask(server, tool, arguments)
        except TimeoutError:
            if not allowed.expired():
                raise
            raise DeadlineExceeded(f"mcp_time_s: the limit is {limits.mcp_time_s}; server {server!r} "
                                   "has not answered by then") from None  # fmt: skip
        finally:
            self._num_tool_calls -= 1
        limit, size = limits.message_bytes, byte_size(answer)
        if size > limit:
            raise QuotaExceeded(f"message_bytes: the limit is {limit}; the answer of server {server!r} has {size}")
        return answer


def _check_object(text: str) -> None:
    try:
        is_object = isinstance(json.loads(text, parse_constant=_no_json), dict)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the arguments of a tool are a JSON object: {error}") from None
    if not is_object:
        raise InvalidRequest(f"the arguments of a tool are a JSON object; given {text[:100]}")


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is none")
