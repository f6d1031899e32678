"""Messages that every connection has: the greeting, and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pieray.messages.frame import Message, register


@register(1)
@dataclass(frozen=True, slots=True)
class Hello(Message):
    """First message of the side that connects; the handshake around it proves that it knows the engine's token."""

    role: str  # "inferlets", "batcher", "resource-manager", "client", "controller"
    peer_id: str  # unique for the life of the process: what a dead peer's resources are found by


@register(2)
@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Answer to a good Hello."""

    peer_id: str
    incarnation: int  # grows with every restart of the actor: a stale endpoint is told from a new one
    heartbeat_s: float = 2.0  # of the connection, if it is over TCP: both ends go by what the listener says
    lost_after_s: float = 10.0


@register(3)
@dataclass(frozen=True, slots=True)
class Completed(Message):
    """A command or request has its result."""

    ticket: int  # the sender's number for it
    value: Any  # None, bytes (u32 or f32 array), str, or [bytes, bytes]: as the command documents


@register(4)
@dataclass(frozen=True, slots=True)
class Failed(Message):
    """A command or request has failed."""

    ticket: int
    code: str  # of pieray.errors
    message: str
    retry_after_s: float = 0.0  # see PierayError
