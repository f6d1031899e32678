"""Waits that are known to be long: others may have this inferlet's memory meanwhile, and are told so."""

from __future__ import annotations

import contextlib

from . import _host
from .errors import Error

LONG_S = 1.0
"""A sleep of so long is."""
PATIENCE_MS = 20
"""For how long a wait goes on before others are told: one that is over by then costs no more than it would."""


class Held:
    """What of the memory others could have."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.num_contexts = 0  # that have run something, and are open
        self.num_pins = 0
        self.has_reserved = False  # pages, which `idle` would give back

    def is_to_be_told(self) -> bool:
        """Whether there is anything to be said."""
        return self.num_contexts > 0 and not self.num_pins and not self.has_reserved

    def tell_idle(self) -> None:
        """Nothing will be computed for a while.  Harmless while a plan runs ahead: it counts once that has ended."""
        with contextlib.suppress(Error):  # it was a hint
            _host.kv.idle([])


held = Held()
_host.at_install(held.clear)
