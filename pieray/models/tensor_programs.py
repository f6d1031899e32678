"""Tensor programs in torch: compiled once for all that share one, run over the rows of a step together.

A row's values do not depend on the rows beside it: operations are elementwise or along the axes of one row, and what
torch would order by the number of rows (matrix products) goes row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import torch

from pieray.models.config import ModelConfig
from pieray.tensor.ops import decoded
from pieray.tensor.program import Program, Step
from pieray.tensor.types import INT, PAGES, Shape, Sizes

SLICE_BYTES = 64 << 20
"""Of what is between a program's inputs and its result, for the rows computed in one go."""
COUNTS = ("rows", "pages_held", "pages_read")
"""Rows that it has run for; of programs of stage `pages`, pages of these rows, over all layers that it runs in, and
those of them that attention has read."""
PART = 16384
"""Numbers that are summed in one go, fewer than torch shares among threads."""
LARGEST_INT = float(1 << 53)
Values: TypeAlias = dict[int, torch.Tensor]
Run: TypeAlias = Callable[[Values, "Given"], torch.Tensor]


@dataclass(slots=True)
class Given:
    """What one call works on: R rows, `inputs` and `states` [R, ...]."""

    inputs: Mapping[str, torch.Tensor]
    states: Sequence[torch.Tensor]
    num_pages: int = 0

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def device(self) -> torch.device:
        return next(iter(self.inputs.values())).device


class Compiled:
    """One program.  Has no state: `ProgramInstance` has."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.num_together = max(1, SLICE_BYTES // (8 * program.num_held))
        late = _late(program)
        wanted = _needed(program, [*program.updates, *([] if program.result is None else [program.result])])
        early = [n for n in wanted if n not in late]
        self._before = [(n, _compiled(program, n)) for n in early]
        self._after = [(n, _compiled(program, n)) for n in wanted if n in late]

    def result(self, given: Given) -> tuple[torch.Tensor | None, Values]:
        """The result [R, ...], and what the updates go on from."""
        values: Values = {}
        for number, run in self._before:
            values[number] = run(values, given)
        if self.program.result is None:
            return None, values
        found = values[self.program.result]
        return found.expand(given.num_rows, *found.shape[1:]), values

    def updated(self, given: Given, values: Values) -> list[torch.Tensor]:
        """The next states [R, ...]."""
        for number, run in self._after:
            values[number] = run(values, given)
        found = [values[number] for number in self.program.updates]
        return [one.expand(given.num_rows, *one.shape[1:]) for one in found]


_compiled_programs: WeakValueDictionary[Program, Compiled] = WeakValueDictionary()


def compiled(program: Program) -> Compiled:
    """Equal programs are one, for as long as somebody has it: their constants may be megabytes."""
    found = _compiled_programs.get(program)
    if found is None:
        found = _compiled_programs[program] = Compiled(program)
    return found


@dataclass(eq=False, slots=True, weakref_slot=True)
class ProgramInstance:
    """A program of one inferlet, with its states, on the device of the model."""

    program: Program
    code: Compiled
    states: list[torch.Tensor]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    """What it has done, see COUNTS."""

    @classmethod
    def of(cls, program: Program, device: torch.device, values: Sequence[bytes] = ()) -> ProgramInstance:
        """`values`: float32 of each state, as `state_bytes` has given them; none: those of the program."""
        states = []
        for number, state in enumerate(program.states):
            shape = [0 if dim == PAGES else int(dim) for dim in state.type.shape]
            first = values[number] if values else state.first
            tensor = torch.zeros(shape)
            if first:
                tensor = torch.from_numpy(np.frombuffer(first, "<f4").copy()).reshape([-1] if 0 in shape else shape)
            states.append(tensor.to(device))
        return cls(program, compiled(program), states)

    def states_for(self, num_pages: int, states: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """The states, or those given, those over pages with that many of them: behind those that there were, 0."""
        return [
            _resized(one, num_pages) if PAGES in state.type.shape else one
            for one, state in zip(self.states if states is None else states, self.program.states, strict=True)
        ]

    def state_values(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """All states in a line, float32."""
        if not self.states:
            return np.zeros(0, np.float32)
        return torch.cat([one.reshape(-1).float() for one in self.states]).cpu().numpy()


def sizes_of(config: ModelConfig, page_size: int) -> Sizes:
    """What named sizes are in a model."""
    c = config
    most = -(-c.max_position // page_size)
    return Sizes(c.vocab_size, c.hidden_size, c.num_heads, c.head_dim, c.num_layers, most)


def _resized(state: torch.Tensor, num_pages: int) -> torch.Tensor:
    if len(state) >= num_pages:
        return state[:num_pages]
    return torch.cat((state, state.new_zeros(num_pages - len(state))))


# --- the operations -------------------------------------------------------------------------------------


def _needed(program: Program, results: Sequence[int]) -> list[int]:
    """Steps that the results need, in order."""
    wanted = set(results)
    for number in range(len(program.steps) - 1, -1, -1):
        if number in wanted:
            wanted.update(program.steps[number].operands)
    return sorted(wanted)


def _late(program: Program) -> set[int]:
    late: set[int] = set()
    for number, step in enumerate(program.steps):
        if (step.name == "input" and step.attributes[0] == "token") or not late.isdisjoint(step.operands):
            late.add(number)
    return late


def _compiled(program: Program, number: int) -> Run:
    step = program.steps[number]
    if step.name == "input":
        return lambda _, given: given.inputs[step.attributes[0]]
    if step.name == "state":
        return lambda _, given: given.states[step.attributes[0]]
    if step.name == "iota":
        return lambda _, given: torch.arange(_size(step.type.shape, given), device=given.device)[None]
    if step.name == "const":
        return _constant(step)
    if step.name in _ELEMENTWISE:
        return _elementwise(program, step)
    run = _ALONG[step.name]
    operands, attributes = step.operands, step.attributes
    return lambda values, given: run([values[one] for one in operands], attributes, given)


def _size(shape: Shape, given: Given) -> int:
    (dim,) = shape
    return given.num_pages if isinstance(dim, str) else dim


def _constant(step: Step) -> Run:
    _, dtype, data = step.attributes
    found = np.frombuffer(decoded(data), "<i4" if dtype == INT else "<f4")
    tensor = torch.from_numpy(found.astype(np.int64 if dtype == INT else np.float32))
    tensor = tensor.reshape([1, *(int(dim) for dim in step.type.shape)])
    kept: dict[torch.device, torch.Tensor] = {}

    def run(_: Values, given: Given) -> torch.Tensor:
        if given.device not in kept:
            kept[given.device] = tensor.to(given.device)
        return kept[given.device]

    return run


def _elementwise(program: Program, step: Step) -> Run:
    ranks = [len(program.steps[one].type.shape) for one in step.operands]
    most, operands, run = max(ranks), step.operands, _ELEMENTWISE[step.name]
    if min(ranks) == most:
        return lambda values, _: run(*[values[one] for one in operands])
    missing = [most - rank for rank in ranks]

    def aligned(values: Values, _: Given) -> torch.Tensor:
        """Rows first, then the axes of each, as many for all."""
        found = []
        for one, count in zip(operands, missing, strict=True):
            value = values[one]
            found.append(value.reshape(len(value), *[1] * count, *value.shape[1:]) if count else value)
        return run(*found)

    return aligned


def _mod(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.is_floating_point() or right.is_floating_point():
        return left.float().remainder(right.float())
    is_zero = right == 0
    return left.remainder(right.masked_fill(is_zero, 1)).masked_fill(is_zero, 0)


def _pow(base: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """By logarithms: torch's own has other bits at the end of a row than within it."""
    base, exponent = base.double(), exponent.double()
    size = (base.abs().log() * exponent).exp().masked_fill(exponent == 0, 1.0)
    is_whole = exponent == exponent.floor()
    signed = torch.where((base < 0) & is_whole & (exponent.remainder(2) == 1), -size, size)
    return signed.masked_fill((base < 0) & ~is_whole, torch.nan).float()


def _to_int(x: torch.Tensor) -> torch.Tensor:
    return (
        x.nan_to_num(0.0, LARGEST_INT, -LARGEST_INT).clamp(-LARGEST_INT, LARGEST_INT).long()
        if x.is_floating_point()
        else x.long()
    )


_ELEMENTWISE: dict[str, Callable[..., torch.Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "sigmoid": lambda x: 1.0 / (1.0 + torch.exp(-x)),  # torch's own has other bits at the end of a row
    "sqrt": torch.sqrt,
    "floor": torch.floor,
    "isfinite": torch.isfinite,
    "not": torch.logical_not,
    "float": lambda x: x.float(),
    "int": _to_int,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "mod": _mod,
    "div": lambda a, b: a.float() / b.float(),
    "pow": _pow,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "where": torch.where,
}


def _reduction(reduce: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Over one axis, brought to the end: so each row is summed in the same order, however many there are."""

    def run(values: list[torch.Tensor], attributes: Sequence[Any], _: Given) -> torch.Tensor:
        x, (axis, is_kept) = values[0], attributes
        axis = axis + 1 if axis >= 0 else axis % (x.dim() - 1) + 1
        found = reduce(x.movedim(axis, -1).contiguous())
        return found.unsqueeze(axis) if is_kept else found

    return run


def _sum(x: torch.Tensor) -> torch.Tensor:
    """Over the last axis, in parts: what torch may share among threads are parts then, never one sum."""
    size = x.shape[-1]
    if size <= PART:
        return x.sum(-1)
    padded = torch.nn.functional.pad(x, (0, -size % PART))
    return padded.view(*x.shape[:-1], -1, PART).sum(-1).sum(-1)


def _mean(x: torch.Tensor) -> torch.Tensor:
    return _sum(x.float()) / x.shape[-1]


def _std(x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return _mean((x - _mean(x)[..., None]).square()).sqrt()


def _logsumexp(x: torch.Tensor) -> torch.Tensor:
    top = x.amax(-1)
    shift = top.masked_fill(~top.isfinite(), 0.0)
    return _sum((x - shift[..., None]).exp()).log() + shift


def _argsort(x: torch.Tensor, *, falls: bool) -> torch.Tensor:
    return torch.sort(x, dim=-1, descending=falls, stable=True).indices


def _rank(values: list[torch.Tensor], attributes: Sequence[Any], _: Given) -> torch.Tensor:
    order = _argsort(values[0], falls=attributes[0])
    places = torch.arange(order.shape[-1], device=order.device).expand(order.shape)
    return torch.empty_like(order).scatter_(-1, order, places)


def _take(values: list[torch.Tensor], _: Sequence[Any], given: Given) -> torch.Tensor:
    x, index = values
    flat = index.reshape(len(index), -1).clamp(0, x.shape[-1] - 1).expand(given.num_rows, -1)
    return x.expand(given.num_rows, -1).gather(-1, flat).reshape(given.num_rows, *index.shape[1:])


def _scatter_add(values: list[torch.Tensor], _: Sequence[Any], given: Given) -> torch.Tensor:
    base, index, added = values
    flat = index.reshape(len(index), -1).clamp(0, base.shape[-1] - 1).expand(given.num_rows, -1)
    amounts = added.reshape(len(added), -1).expand(given.num_rows, flat.shape[-1])
    return base.expand(given.num_rows, -1).scatter_add(-1, flat, amounts.float())


def _matmul(values: list[torch.Tensor], _: Sequence[Any], given: Given) -> torch.Tensor:
    left, right = (one.expand(given.num_rows, *one.shape[1:]) for one in values)
    return torch.stack([a @ b for a, b in zip(left, right, strict=True)])


_ALONG: dict[str, Callable[[list[torch.Tensor], Sequence[Any], Given], torch.Tensor]] = {
    "sum": _reduction(_sum),
    "mean": _reduction(_mean),
    "std": _reduction(_std),
    "max": _reduction(lambda x: x.amax(-1)),
    "min": _reduction(lambda x: x.amin(-1)),
    "any": _reduction(lambda x: x.any(-1)),
    "all": _reduction(lambda x: x.all(-1)),
    "argmax": _reduction(lambda x: x.argmax(-1)),
    "argmin": _reduction(lambda x: x.argmin(-1)),
    "logsumexp": _reduction(_logsumexp),
    "softmax": lambda v, _, __: v[0].float().softmax(-1),
    "log_softmax": lambda v, _, __: v[0].float().log_softmax(-1),
    "cumsum": lambda v, _, __: v[0].cumsum(-1),
    "sort": lambda v, a, _: torch.sort(v[0], dim=-1, descending=a[0], stable=True).values,
    "argsort": lambda v, a, _: _argsort(v[0], falls=a[0]),
    "rank": _rank,
    "take": _take,
    "scatter_add": _scatter_add,
    "slice": lambda v, a, _: v[0][..., a[0] : a[1]],
    "unsqueeze": lambda v, a, _: v[0].unsqueeze(a[0] + 1 if a[0] >= 0 else a[0]),
    "squeeze": lambda v, a, _: v[0].squeeze(a[0] + 1 if a[0] >= 0 else a[0]),
    "matmul": _matmul,
}
