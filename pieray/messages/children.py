"""InferletActor -> InferletActor: what a parent says of its child, beyond what any client may."""

from __future__ import annotations

from dataclasses import dataclass

from pieray.messages.frame import Message, register


@register(62)
@dataclass(frozen=True, slots=True)
class Bind(Message):
    """From now on the inferlet ends with this connection, or does so no more."""

    ticket: int
    instance_id: str
    is_bound: bool
