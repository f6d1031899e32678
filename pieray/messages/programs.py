"""InferletActor -> Batcher: tensor programs of inferlets."""

from __future__ import annotations

from dataclasses import dataclass

from pieray.messages.frame import Message, register


@register(120)
@dataclass(frozen=True, slots=True)
class LoadProgram(Message):
    """A tensor program for one inferlet alone, until it is unloaded or the inferlet is cancelled; answered with None.

    The batcher checks it anew against its model and `bounds`."""

    ticket: int
    inferlet: int
    number: int  # from 1, the inferlet's for it
    code: bytes  # JSON, see `pieray.tensor.program`
    bounds: list[int]  # fields of `Bounds`
    states: list[bytes]  # float32 of each state; []: as the program says


@register(121)
@dataclass(frozen=True, slots=True)
class UnloadProgram(Message):
    """Later commands cannot name it; those before it still run through it.  Answered with None."""

    ticket: int
    inferlet: int
    number: int


@register(122)
@dataclass(frozen=True, slots=True)
class ReadProgram(Message):
    """What a program has come to: behind all draws and passes that have been answered.

    -> [f32 of all states in a line, u32 of each state's length, u64 of its COUNTS]"""

    ticket: int
    inferlet: int
    number: int
