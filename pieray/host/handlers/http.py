"""WIT interface `http`: requests to the world."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class HttpHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
