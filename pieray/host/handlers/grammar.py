"""WIT interface `grammar`: which tokens may come next."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class GrammarHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
