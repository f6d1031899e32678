"""Tools of MCP servers that the operator registered, or that the client brought.  Capability: `mcp`.

for tool in await mcp.tools("files"):
    print(tool.name, tool.description, tool.input_schema)
result = await mcp.call("files", "read", path="a.txt")
result.text
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import _convert, _host
from .errors import RemoteFailed
from .tickets import Ticket, take_text


@dataclass(frozen=True)
class Result:
    """What a tool gave: content blocks as MCP has them, and perhaps a JSON value."""

    is_error: bool
    """The tool itself reports a failure; the content says which."""
    content: list[dict[str, Any]]
    structured: Any = None

    @property
    def text(self) -> str:
        """The text blocks, joined by newlines."""
        return "\n".join(str(block.get("text", "")) for block in self.content if block.get("type") == "text")

    def raise_for_error(self) -> Result:
        """This result; raises RemoteFailed if the tool reports a failure."""
        if self.is_error:
            raise RemoteFailed(self.text)
        return self


@dataclass(frozen=True)
class Tool:
    """A tool of a server: what a model is told of it, and a way to call it."""

    server: str
    name: str
    description: str
    input_schema: dict[str, Any]
    """JSON schema of the arguments."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The schema by the name that chat templates know it under."""
        return self.input_schema

    async def call(self, args: Mapping[str, Any] | None = None) -> str:
        """Call it with a mapping of arguments; its text.  Raises RemoteFailed if the tool reports a failure."""
        return (await _call(self.server, self.name, args or {})).raise_for_error().text

    async def __call__(self, **args: Any) -> str:
        """`call` with keyword arguments."""
        return await self.call(args)


def servers() -> list[str]:
    """Names of the servers that this inferlet may call."""
    return list(_host.mcp.servers())


async def tools(server: str) -> list[Tool]:
    """The tools of a server.  Raises Denied, NotFound, PeerLost, DeadlineExceeded."""
    found = json.loads(await Ticket(int(_host.mcp.tools(server)), take_text))
    return [Tool(server, tool["name"], tool["description"], tool["input_schema"]) for tool in found]


async def call(server: str, tool: str, /, **args: Any) -> Result:
    """Call a tool.  Raises Denied, NotFound (server or tool), InvalidRequest (arguments that JSON cannot hold),
    RemoteFailed (the server refuses), PeerLost, DeadlineExceeded, QuotaExceeded; a tool that reports a failure is a
    result with `is_error`."""
    return await _call(server, tool, args)


async def _call(server: str, tool: str, args: Mapping[str, Any]) -> Result:
    given = _convert.instance("the arguments of a tool", args, Mapping)  # type: ignore[type-abstract]
    text = _convert.to_json(f"the arguments of tool {_convert.text('tool', tool)!r}", dict(given))
    found = _convert.load(await Ticket(int(_host.mcp.call(server, tool, text)), take_text, is_long=True))
    return Result(found["is_error"], found["content"], found["structured"])
