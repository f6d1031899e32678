"""A tensor program: read from JSON, checked against a model's sizes and an inferlet's bounds.

    {"stage": "logits", "layers": null,
     "ops": [["input", "logits"], ["max", 0, -1, false], ["sub", 0, 1]],
     "result": 2, "states": [[["V"], null]], "updates": [2]}

`states` are [shape, base64 float32 or null (zeros)]; operation ["state", i] reads one, `updates[i]` is its next value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.tensor.ops import OPS, decoded, work_of
from pieray.tensor.types import FLOAT, PAGES, STAGES, Sizes, Stage, Type, resolved

MAX_STATES = 8
OP_WORK = 4096
"""What an operation counts for beside its numbers: to start it takes as long as so many."""
STATE_WORK = 4
"""What each number of a state counts for: it is read, kept and copied."""
OP_VALUES, OTHER_VALUES = 16, 512
"""Values of JSON, lists among them, that an operation is written with at most, and all the rest but for layers."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a program may be at most."""

    num_ops: int
    num_bytes: int
    """Of its code, constants included, and of its states."""
    work: int
    """Operations for a row."""


class Step(NamedTuple):
    """One checked operation."""

    name: str
    operands: tuple[int, ...]
    attributes: tuple[Any, ...]
    type: Type


class State(NamedTuple):
    """What a program carries from row to row."""

    type: Type
    first: bytes
    """float32; b"": zeros."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A checked program.  Steps are in an order in which they can be computed."""

    stage: str
    layers: frozenset[int] | None
    """Those that it runs in; None: all."""
    steps: tuple[Step, ...]
    result: int | None
    states: tuple[State, ...]
    updates: tuple[int, ...]
    work: int
    """Operations for a row, in all its layers."""
    num_held: int
    """Numbers that there are at one time for a row, at most."""
    digest: str
    """Of the code: equal programs are computed together."""

    def __eq__(self, other: object) -> bool:
        """The same code over the same sizes."""
        return isinstance(other, Program) and self.digest == other.digest and self._types == other._types

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def _types(self) -> list[Type]:
        return [step.type for step in self.steps]

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(step.attributes[0] for step in self.steps if step.name == "input")

    def runs_in(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    @property
    def state_bytes(self) -> int:
        """Of states whose size is known."""
        return sum(4 * _count(state.type) for state in self.states)


def parse(code: str | bytes, sizes: Sizes, bounds: Bounds) -> Program:
    """The program that JSON text is.

    Raises InvalidRequest naming the operation that is at fault, QuotaExceeded naming the limit and what was given.
    """
    if len(code) > bounds.num_bytes:
        raise QuotaExceeded(f"program_bytes: the limit is {bounds.num_bytes}; this program has {len(code)}")
    text = code.encode() if isinstance(code, str) else bytes(code)
    most = OP_VALUES * bounds.num_ops + 2 * sizes.num_layers + OTHER_VALUES
    if (num_values := text.count(b",") + text.count(b"[") + text.count(b"{")) > most:  # before megabytes become lists
        raise QuotaExceeded(
            f"program_ops: the limit is {bounds.num_ops}; their code has at most {most} commas and brackets; "
            f"this one has {num_values}"
        )
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"a tensor program is JSON: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("ops"), list):
        raise InvalidRequest("a tensor program is an object with stage, ops and result")
    unknown = given.keys() - {"stage", "layers", "ops", "result", "states", "updates"}
    if unknown:
        raise InvalidRequest(f"a tensor program has no {sorted(map(str, unknown))[0][:40]!r}")
    name = given.get("stage")
    if not isinstance(name, str) or name not in STAGES:
        raise InvalidRequest(f"the stage of a program is one of {', '.join(STAGES)}; given {str(name)[:40]!r}")
    if len(given["ops"]) > bounds.num_ops:
        raise QuotaExceeded(f"program_ops: the limit is {bounds.num_ops}; this program has {len(given['ops'])}")
    return _Reader(name, STAGES[name], given, sizes, bounds).read(hashlib.sha256(text).hexdigest())


class _Reader:
    """Checks one program, operation by operation."""

    def __init__(self, name: str, stage: Stage, given: dict[str, Any], sizes: Sizes, bounds: Bounds) -> None:
        self.name = name
        self.stage = stage
        self.given = given
        self.sizes = sizes
        self.bounds = bounds
        self.steps: list[Step] = []
        self.are_late: list[bool] = []
        self.work = self.num_held = 0

    def read(self, digest: str) -> Program:
        states = self._states()
        for number, op in enumerate(self.given["ops"]):
            try:
                self.steps.append(self._step(op, states))
            except InvalidRequest as error:
                shown = op[0] if isinstance(op, list) and op and isinstance(op[0], str) else "?"
                raise InvalidRequest(f"operation {number} ({shown[:20]}): {error.message}") from None
            self._check_work(self.work, f" and more up to operation {number}")
        layers = self._layers()
        if self.stage.has_layers:
            num_layers = self.sizes.num_layers if layers is None else len(layers)
            self.work *= max(num_layers, 1)
            self._check_work(self.work, f" in {num_layers} layers")
        return Program(
            self.name,
            layers,
            tuple(self.steps),
            self._result(),
            states,
            self._updates(states),
            self.work,
            max(self.num_held, 1),
            digest,
        )

    def _check_work(self, work: int, where: str) -> None:
        if work > self.bounds.work:
            raise QuotaExceeded(
                f"program_work: the limit is {self.bounds.work} operations for a row; this program has {work}{where}"
            )

    def _states(self) -> tuple[State, ...]:
        given = self.given.get("states") or []
        if not isinstance(given, list) or not all(isinstance(one, list) and len(one) == 2 for one in given):
            raise InvalidRequest("states are a list of [shape, values or null]")
        if given and not self.stage.has_states:
            raise InvalidRequest(f"a program of stage {self.name} has no states")
        if len(given) > MAX_STATES:
            raise InvalidRequest(f"a program has at most {MAX_STATES} states; given {len(given)}")
        found = []
        for shape, values in given:
            if not isinstance(shape, list) or not isinstance(values, str | None):
                raise InvalidRequest("states are a list of [shape, base64 values or null]")
            kind = Type(FLOAT, resolved(shape, self.sizes))
            first = b"" if values is None else decoded(values)
            if first and (PAGES in kind.shape or len(first) != 4 * self.sizes.count(kind.shape)):
                raise InvalidRequest(
                    f"a state of {list(kind.shape)} begins with as many values; given {len(first)} bytes"
                )
            self._check_pages(kind)
            if PAGES in kind.shape and len(kind.shape) != 1:
                raise InvalidRequest(f"a state over pages has one axis; given {list(kind.shape)}")
            found.append(State(kind, first))
        num_bytes = sum(4 * self.sizes.count(state.type.shape) for state in found)
        if num_bytes > self.bounds.num_bytes:
            raise QuotaExceeded(f"program_bytes: the limit is {self.bounds.num_bytes}; these states have {num_bytes}")
        self.work += STATE_WORK * num_bytes // 4
        self.num_held += num_bytes // 2
        return tuple(found)

    def _step(self, op: Any, states: Sequence[State]) -> Step:
        if not isinstance(op, list) or not op or not isinstance(op[0], str):
            raise InvalidRequest("an operation is a list that begins with its name")
        name, rest = op[0], op[1:]
        if name in ("input", "state"):
            if len(rest) != 1:
                raise InvalidRequest("takes one argument")
            return self._source(name, rest[0], states)
        if name not in OPS:
            raise InvalidRequest(f"operations are input, state, {', '.join(OPS)}")
        known = OPS[name]
        if len(rest) != known.num_operands + known.num_attributes:
            raise InvalidRequest(f"takes {known.num_operands} + {known.num_attributes} arguments; given {len(rest)}")
        operands = tuple(self._operand(number) for number in rest[: known.num_operands])
        types = [self.steps[number].type for number in operands]
        attributes = rest[known.num_operands :]
        found = known.rule(types, attributes, self.sizes)
        self._check_pages(found)
        self.work += OP_WORK + work_of(name, known, types, found, self.sizes)
        self.num_held += self.sizes.count(found.shape)
        self.are_late.append(any(self.are_late[number] for number in operands))
        return Step(name, operands, tuple(attributes), found)

    def _source(self, name: str, which: Any, states: Sequence[State]) -> Step:
        if name == "state":
            if isinstance(which, bool) or not isinstance(which, int) or not 0 <= which < len(states):
                raise InvalidRequest(f"states are from 0 to {len(states) - 1}; given {str(which)[:20]}")
            self.are_late.append(False)
            return Step(name, (), (which,), states[which].type)
        if not isinstance(which, str) or which not in self.stage.inputs:
            raise InvalidRequest(
                f"a program of stage {self.name} is given {', '.join(self.stage.inputs)}; not {str(which)[:40]!r}"
            )
        given = self.stage.inputs[which]
        self.are_late.append(which in self.stage.late)
        shape = resolved(given.shape, self.sizes)
        self.work += self.sizes.count(shape)
        self.num_held += self.sizes.count(shape)
        return Step(name, (), (which,), Type(given.dtype, shape))

    def _check_pages(self, kind: Type) -> None:
        if PAGES in kind.shape and not self.stage.has_pages:
            raise InvalidRequest(f"{PAGES} is a size of stages pages and attention alone; this one is {self.name}")

    def _operand(self, number: Any) -> int:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self.steps):
            raise InvalidRequest(f"operands are numbers of earlier operations; given {str(number)[:20]}")
        return number

    def _layers(self) -> frozenset[int] | None:
        given = self.given.get("layers")
        if given is None:
            return None
        if not self.stage.has_layers:
            raise InvalidRequest(f"a program of stage {self.name} has no layers")
        most = self.sizes.num_layers
        if not isinstance(given, list) or not all(
            isinstance(one, int) and not isinstance(one, bool) and 0 <= one < most for one in given
        ):
            raise InvalidRequest(f"layers are numbers from 0 to {most - 1}; given {str(given)[:80]}")
        return frozenset(given)

    def _result(self) -> int | None:
        number, wanted = self.given.get("result"), self.stage.result
        if wanted is None:
            if number is not None:
                raise InvalidRequest(f"a program of stage {self.name} has no result: it updates states")
            return None
        number = self._operand(number)
        expected = Type(wanted.dtype, resolved(wanted.shape, self.sizes))
        if self.steps[number].type != expected:
            raise InvalidRequest(
                f"the result of stage {self.name} is {expected}; that of this program is {self.steps[number].type}"
            )
        if self.are_late[number]:
            raise InvalidRequest("the result cannot depend on the token, which is drawn from it")
        return number

    def _updates(self, states: Sequence[State]) -> tuple[int, ...]:
        given = self.given.get("updates") or []
        if not isinstance(given, list) or len(given) != len(states):
            raise InvalidRequest(f"there is an update for each of {len(states)} states; given {str(given)[:40]}")
        numbers = tuple(map(self._operand, given))
        for state, number in zip(states, numbers, strict=True):
            if self.steps[number].type != state.type:
                raise InvalidRequest(f"a state of {state.type} cannot become {self.steps[number].type}")
        return numbers


def _count(kind: Type) -> int:
    total = 1
    for dim in kind.shape:
        total *= dim if isinstance(dim, int) else 0
    return total
