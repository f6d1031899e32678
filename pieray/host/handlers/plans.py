"""WIT interface `plans`: decode plans."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class PlanHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
