"""What the inferlets of one actor share beyond their device: the ways to other actors and to the world."""

from __future__ import annotations

from dataclasses import dataclass, field

from pieray.host.grammars import GrammarService
from pieray.wasm.timers import Timers


@dataclass(slots=True)
class Services:
    """Made by the actor, closed with its InferletHost.

    What an engine (or a test) does not have is None; the handlers on it are `unsupported` then.
    """

    timers: Timers = field(default_factory=Timers)
    """Calls functions at given times, on a thread of its own: they must be short."""
    grammars: GrammarService = field(default_factory=GrammarService)
    """Compiles grammars; its threads and processes start with the first."""

    def close(self) -> None:
        """Close all of them; idempotent."""
        self.timers.close()
        self.grammars.close()
