"""InferletActor and Batcher <-> ResourceManager."""

from __future__ import annotations

from dataclasses import dataclass

from pieray.messages.frame import Message, register


@register(20)
@dataclass(frozen=True, slots=True)
class LeasePages(Message):
    """Ask for pages; answered with Completed(u32 bytes) or Failed(out-of-pages)."""

    ticket: int
    inferlet: int
    count: int
    deadline_s: float  # how long the request may wait in line


@register(21)
@dataclass(frozen=True, slots=True)
class ReleasePages(Message):
    """Give leased pages back; nothing in flight touches them."""

    inferlet: int
    pages: bytes  # u32


@register(22)
@dataclass(frozen=True, slots=True)
class CloseLease(Message):
    """The inferlet has ended: all its pages come back."""

    inferlet: int


@register(23)
@dataclass(frozen=True, slots=True)
class ReclaimSpare(Message):
    """Pages are short: hand back leased pages that no handle uses."""

    count: int


@register(30)
@dataclass(frozen=True, slots=True)
class PeerFenced(Message):
    """No step touches pages for that (dead) peer any more: its pages may be leased again."""

    peer_id: str
