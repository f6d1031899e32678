"""Client -> Controller, over its socket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pieray.messages.frame import Message, register


@register(46)
@dataclass(frozen=True, slots=True)
class Ask(Message):
    """Call a method of the Controller; the value of its Completed is what the method returned."""

    ticket: int
    method: str  # one of `pieray.actors.door.METHODS`
    args: list[Any]  # plain data
