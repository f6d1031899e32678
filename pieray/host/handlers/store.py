"""WIT interface `store`: text by key, per tenant."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class StoreHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
