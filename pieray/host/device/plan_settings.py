"""What a decode plan draws with, and what it works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pieray.host.device.commands import PROGRAMMED
from pieray.host.device.outbox import Outbox
from pieray.host.identity import Identity
from pieray.host.tickets import TicketTable
from pieray.messages import Sampler
from pieray.pages.lineage import Lineage
from pieray.pages.space import PageSpace


@dataclass(slots=True)
class PlanSettings:
    """What may be changed before `start` and while the plan is paused."""

    sampler: Sampler
    stop_tokens: bytes = b""  # u32
    stop_texts: tuple[str, ...] = ()
    grammar: tuple[Any, ...] = ()  # kind, text, tokens taken in before the plan
    num_taken: int = 0  # tokens drawn before the grammar was set: it begins behind them
    adapter: int = 0
    num_drafts: int = 0
    history: bytes = b""  # u32
    is_scored: bool = False
    programs: tuple[int, ...] = ()  # the batcher's numbers of tensor programs
    looks_at_pages: bool = False  # whether one of them does

    @property
    def content(self) -> int:
        """What the KV that it writes depends on, besides its tokens."""
        return PROGRAMMED if self.programs else self.adapter


@dataclass(slots=True)
class PlanContext:
    """What the plans of one inferlet work with."""

    identity: Identity
    tickets: TicketTable
    pages: PageSpace
    lineage: Lineage
    outbox: Outbox
    send: Callable[[str], None]
    """A text to the client; raises QuotaExceeded."""
