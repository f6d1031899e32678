"""WIT interface `embeds`: embeddings as the input of passes."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class EmbedsHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
