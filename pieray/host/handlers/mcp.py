"""WIT interface `mcp`: tools of MCP servers."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class McpHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
