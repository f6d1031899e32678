"""WIT interface `adapters`: LoRA."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class AdapterHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
