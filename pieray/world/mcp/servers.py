"""MCP servers by name: started when first asked, started anew when they have died, closed together.

Tools and results are plain JSON, as the WIT's `mcp` gives them to guests.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Mapping
from typing import Any, Protocol

from pieray.concurrency.loop_shares import Shares
from pieray.errors import DeadlineExceeded, NotFound, PeerLost, RemoteFailed
from pieray.world.mcp.connection import Connection
from pieray.world.mcp.spec import ServerSpec, check_name, parse_spec

MAX_PAGES = 100
RESTART_S = 1.0
"""A server that does not start is not tried again sooner."""
OWN_CALLS = 4
COMMON_CALLS = 32
"""Calls that one of the operator's servers has at one time, as `Shares` counts them."""

Json = dict[str, Any]


class ToolServer(Protocol):
    """What answers for one name; all on one event loop."""

    async def list_tools(self) -> list[Json]:
        """[{"name", "description", "input_schema"}]"""

    async def call_tool(self, tool: str, arguments: Json) -> Json:
        """{"is_error", "content", "structured"}; raises NotFound for an unknown tool, RemoteFailed, PeerLost."""

    async def close(self) -> None: ...


def server_of(name: str, given: Any) -> ToolServer:
    """The server behind a mapping (see `parse_spec`), a server object of the mcp library, or any object with
    `list_tools` and `call_tool(name, arguments)`.  Raises ConfigError."""
    check_name(name)
    if hasattr(given, "call_tool") and hasattr(given, "list_tools") and not _is_of_library(given):
        return ObjectServer(given)
    return McpServer(name, given if _is_of_library(given) else parse_spec(name, given))


def _is_of_library(given: Any) -> bool:
    return any(cls.__module__.startswith("mcp.server.") for cls in type(given).__mro__)


class McpServer:
    """A server that speaks MCP: a process, a URL, or an object of the library."""

    def __init__(self, name: str, server: ServerSpec | Any) -> None:
        self._name = name
        self._server = server
        self._connection: Connection | None = None
        self._failed_at = float("-inf")
        self._failure = ""

    async def list_tools(self) -> list[Json]:
        found: list[Any] = []
        cursor = None
        for _ in range(MAX_PAGES):
            page = await self._ask("list_tools", cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        return [_tool(tool) for tool in found]

    async def call_tool(self, tool: str, arguments: Json) -> Json:
        try:
            result = result_of(await self._ask("call_tool", tool, arguments))
        except RemoteFailed:
            await self._check_known(tool)
            raise
        if result["is_error"]:
            await self._check_known(tool)
        return result

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def _check_known(self, tool: str) -> None:
        """Servers differ in how they report an unknown tool: raise NotFound for one that is not listed."""
        names = [found["name"] for found in await self.list_tools()]
        if tool not in names:
            raise unknown_tool(self._name, tool, names)

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        from mcp import MCPError

        connection = self._connected()
        try:
            client = await connection.client()
        except PeerLost as error:
            self._failed_at, self._failure = time.monotonic(), error.message
            raise
        try:
            return await getattr(client, method)(*args, **kwargs)
        except MCPError as error:
            raise self._error(connection, error.code, error.message) from None
        except Exception as error:  # noqa: BLE001 - transports fail in ways of their own
            if await connection.answers():  # a tool broke what it promises: others have calls in flight
                raise RemoteFailed(f"mcp: server {self._name!r}: {error}") from None
            connection.abandon()
            raise PeerLost(f"mcp: server {self._name!r}: {error}") from None

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_over:
            if time.monotonic() < self._failed_at + RESTART_S:
                raise PeerLost(self._failure)
            self._connection = Connection(self._name, self._server)
        return self._connection

    def _error(self, connection: Connection, code: int, message: str) -> Exception:
        from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST, REQUEST_TIMEOUT

        if code == CONNECTION_CLOSED:
            connection.abandon()
            return PeerLost(f"mcp: server {self._name!r} is gone: {message}")
        if code == REQUEST_TIMEOUT:
            return DeadlineExceeded(f"mcp: server {self._name!r}: {message}")
        if code == INVALID_REQUEST:  # also "the session is unknown", from a server that was started anew
            connection.abandon()
        return RemoteFailed(f"mcp: server {self._name!r}: {message}")


class ObjectServer:
    """Any object with `list_tools()` and `call_tool(name, arguments)`, plain or asynchronous methods.

    Plain ones run on threads.  What `call_tool` raises is a result with `is_error`, as in MCP.
    """

    def __init__(self, server: Any) -> None:
        self._server = server

    async def list_tools(self) -> list[Json]:
        found = await _call(self._server.list_tools)
        return [_tool(tool) for tool in getattr(found, "tools", found)]

    async def call_tool(self, tool: str, arguments: Json) -> Json:
        names = [found["name"] for found in await self.list_tools()]
        if tool not in names:
            raise unknown_tool(type(self._server).__name__, tool, names)
        try:
            return result_of(await _call(self._server.call_tool, tool, arguments))
        except Exception as error:  # noqa: BLE001 - the tool's own, whatever it is
            text = f"{type(error).__name__}: {error}"
            return {"is_error": True, "content": [{"type": "text", "text": text}], "structured": None}

    async def close(self) -> None:
        """Nothing: the object is its owner's."""


class ToolServers:
    """Servers by name.  All coroutines run on one event loop."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._servers = {name: server_of(name, server) for name, server in given.items()}
        self._calls = {name: Shares(OWN_CALLS, COMMON_CALLS) for name in self._servers}

    @property
    def names(self) -> list[str]:
        return sorted(self._servers)

    def calls(self, server: str) -> Shares:
        """The calls that one server has at one time."""
        return self._calls[server]

    async def ask(self, server: str, tool: str, arguments: str) -> str:
        """JSON: the tools of a server for tool "", else the result of a call.  Raises NotFound, RemoteFailed,
        PeerLost, and ValueError for arguments that are no JSON object."""
        found = self._servers.get(server)
        if found is None:
            raise NotFound(f"mcp: no server {server!r}; there are: {', '.join(self.names) or 'none'}")
        answer = await found.call_tool(tool, json.loads(arguments)) if tool else await found.list_tools()
        return json.dumps(answer, ensure_ascii=False)

    async def close(self) -> None:
        """Close all; idempotent."""
        await asyncio.gather(*(server.close() for server in self._servers.values()), return_exceptions=True)


def unknown_tool(server: str, tool: str, names: list[str]) -> NotFound:
    return NotFound(f"mcp: server {server!r} has no tool {tool[:100]!r}; it has: {', '.join(names[:50]) or 'none'}")


def _tool(tool: Any) -> Json:
    given = tool if isinstance(tool, Mapping) else vars(tool)
    schema = given.get("input_schema") or given.get("inputSchema") or {"type": "object"}
    return {"name": str(given["name"]), "description": str(given.get("description") or ""), "input_schema": schema}


def result_of(value: Any) -> Json:
    """A result of the library, a mapping with "content", or any JSON value, in the form that guests get."""
    if hasattr(value, "model_dump") and hasattr(value, "content"):
        content = [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in value.content]
        return {"is_error": bool(value.is_error), "content": content, "structured": value.structured_content}
    if isinstance(value, Mapping) and isinstance(value.get("content"), list):
        is_error = bool(value.get("is_error", value.get("isError", False)))
        structured = value.get("structured", value.get("structuredContent"))
        return {"is_error": is_error, "content": value["content"], "structured": structured}
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    structured = None if isinstance(value, str) else value
    return {"is_error": False, "content": [{"type": "text", "text": text}], "structured": structured}


async def _call(function: Any, *args: Any) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    found = await asyncio.to_thread(function, *args)
    return await found if inspect.isawaitable(found) else found
