"""WIT interface `samplers`: sampler chains."""

from __future__ import annotations

from pieray.host.handlers.base import HandlerGroup


class SamplerHandlers(HandlerGroup):
    """See `pieray/wit/pieray.wit`."""
