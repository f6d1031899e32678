"""WIT interface `children`: inferlets that this one launches."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class ChildrenHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
