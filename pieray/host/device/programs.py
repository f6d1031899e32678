"""Tensor programs of an inferlet, on their way to the batcher."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from pieray.host.device.commands import Command, Queue, wire_ticket
from pieray.messages import LoadProgram, Message, ReadProgram, UnloadProgram
from pieray.pages.prepared import Prepared
from pieray.tensor.program import Bounds, Program


@dataclass(frozen=True, slots=True)
class OpenProgram:
    """What a handle stands for."""

    number: int
    """The batcher's for it, of this inferlet."""
    program: Program
    num_bytes: int


class Load(Command):
    """The batcher is to have a program, ahead of all that names it.  What is wrong with it there is told to those."""

    __slots__ = ("_bounds", "_code", "_states", "number")

    def __init__(
        self, ticket: int, queue: Queue, number: int, code: str, bounds: Bounds, states: Sequence[bytes]
    ) -> None:
        super().__init__(ticket, queue, no_pages())
        self.number = number
        self._code = code
        self._bounds = bounds
        self._states = states

    def message(self, inferlet: int) -> Message:
        ticket = wire_ticket(inferlet, self.ticket)
        code, bounds = self._code.encode(), list(astuple(self._bounds))
        return LoadProgram(ticket, inferlet, self.number, code, bounds, list(self._states))


class Unload(Command):
    """The batcher may forget one, behind the commands enqueued so far."""

    __slots__ = ("number",)

    def __init__(self, ticket: int, queue: Queue, number: int) -> None:
        super().__init__(ticket, queue, no_pages())
        self.number = number

    def message(self, inferlet: int) -> Message:
        return UnloadProgram(wire_ticket(inferlet, self.ticket), inferlet, self.number)


class Read(Command):
    """What a program has come to is asked of the batcher; `value` makes the ticket's value of the answer."""

    __slots__ = ("_value", "number")

    def __init__(self, ticket: int, queue: Queue, number: int, value: Callable[[list[bytes]], object]) -> None:
        super().__init__(ticket, queue, no_pages())
        self.number = number
        self._value = value

    def message(self, inferlet: int) -> Message:
        return ReadProgram(wire_ticket(inferlet, self.ticket), inferlet, self.number)

    def settled(self, result: object) -> object:
        return self._value(result) if isinstance(result, list) else result


def states_of(found: list[bytes]) -> bytes:
    """float32 of all states."""
    return found[0]


def counts_of(found: list[bytes]) -> str:
    """JSON of COUNTS."""
    rows, held, read = np.frombuffer(found[2], "<u8").tolist()
    return json.dumps({"rows": rows, "pages_held": held, "pages_read": read})


def no_pages() -> Prepared:
    """Of a command that touches none."""
    none = np.zeros(0, np.int64)
    return Prepared(
        rows=none, num_pages=0, reads=[], num_full=0, writes=[], row_copies=[], frames=none, frame_copies=[], moved=[]
    )
