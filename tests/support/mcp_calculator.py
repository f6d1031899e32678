"""An MCP server of the official library: `python mcp_calculator.py` over stdio, `... http PORT` over HTTP."""

from __future__ import annotations

import asyncio
import os
import sys

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("calculator", log_level="CRITICAL")
calls = 0


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def count() -> int:
    """How often this process was asked for it."""
    global calls  # noqa: PLW0603 - what a server remembers for as long as it lives
    calls += 1
    return calls


@server.tool()
def divide(a: int, b: int) -> float:
    """Divide two numbers."""
    if not b:
        raise ToolError("division by zero")
    return a / b


@server.tool()
def pid() -> int:
    """The process."""
    return os.getpid()


@server.tool()
def environment(name: str) -> str:
    """A variable of the environment."""
    return os.environ.get(name, "")


@server.tool()
async def sleep(seconds: float) -> str:
    """Take a while."""
    await asyncio.sleep(seconds)
    return "awake"


@server.tool()
def die() -> str:
    """End the process in the middle of a call."""
    os._exit(3)


@server.tool()
def long(size: int) -> str:
    """A long text."""
    return "x" * size


if __name__ == "__main__":
    if sys.argv[1:2] == ["http"]:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
    else:
        server.run("stdio")
