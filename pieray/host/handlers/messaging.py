"""WIT interface `messaging`: messages between inferlets."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class MessagingHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
