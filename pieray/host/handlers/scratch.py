"""WIT interface `scratch`: files in memory."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class ScratchHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
