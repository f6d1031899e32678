"""Tensor programs: functions over the tensors of a pass that run in the engine, with the step.

    n = 1.0
    with tensor.draw(lambda logits: tensor.where(logits >= logits.max() - n * logits.std(), logits, -inf)) as top:
        text = await ctx.generate(32, programs=[top], temperature=1.0, seed=7)

The function is called once, with stand-ins for the tensors that its parameters name, and what it does to them is noted:
it runs no Python in the engine.  So it has no `if` on values, but `where`, and no loops over them.
"""

from __future__ import annotations

import inspect
import json
import math
import struct
from array import array
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _convert, _host
from ._waiting import wait_ticket
from .errors import InvalidRequest
from .forward import Pass
from .plans import Plan
from .sampler import SamplerHandle

if TYPE_CHECKING:
    from typing import Self

Value: TypeAlias = "Tensor | float | Sequence[Any]"
DRAWS = ("logits", "draw")
LARGEST_INT = (1 << 31) - 1
MAX_AXES = 3


class _Trace:
    """The operations noted so far; the same operation is noted once."""

    def __init__(self) -> None:
        self.ops: list[list[Any]] = []
        self._known: dict[str, int] = {}

    def add(self, name: str, *arguments: Any) -> Tensor:
        op = [name, *arguments]
        key = json.dumps(op)
        if key not in self._known:
            self._known[key] = len(self.ops)
            self.ops.append(op)
        return Tensor(self, self._known[key])

    def of(self, value: Value) -> Tensor:
        """A tensor of this trace: a number or list becomes a constant."""
        if isinstance(value, Tensor):
            if value.trace is not self:
                raise InvalidRequest("a tensor of another program was used")
            return value
        shape, numbers = _flat(value)
        is_int = all(isinstance(one, int) and abs(one) <= LARGEST_INT for one in numbers)
        try:
            data = struct.pack(f"<{len(numbers)}{'i' if is_int else 'f'}", *numbers)
        except (struct.error, OverflowError):
            raise InvalidRequest("constants are numbers that 32 bits hold; one given is too large") from None
        return self.add("const", shape, "int" if is_int else "float", b64encode(data).decode())


class Tensor:
    """A value of a program: what arithmetic, comparisons and the methods give is noted, not computed.

    Axes count from the last (-1).  Shapes go together as in numpy.
    """

    __slots__ = ("number", "trace")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, trace: _Trace, number: int) -> None:
        self.trace = trace
        self.number = number

    def _op(self, name: str, *others: Value, more: Sequence[Any] = ()) -> Tensor:
        operands = [self.trace.of(one).number for one in others]
        return self.trace.add(name, self.number, *operands, *more)

    def _back(self, name: str, other: Value) -> Tensor:
        return self.trace.of(other)._op(name, self)

    def __add__(self, other: Value) -> Tensor:
        return self._op("add", other)

    def __sub__(self, other: Value) -> Tensor:
        return self._op("sub", other)

    def __mul__(self, other: Value) -> Tensor:
        return self._op("mul", other)

    def __truediv__(self, other: Value) -> Tensor:
        return self._op("div", other)

    def __mod__(self, other: Value) -> Tensor:
        return self._op("mod", other)

    def __pow__(self, other: Value) -> Tensor:
        return self._op("pow", other)

    def __matmul__(self, other: Value) -> Tensor:
        return self._op("matmul", other)

    def __radd__(self, other: Value) -> Tensor:
        return self._back("add", other)

    def __rsub__(self, other: Value) -> Tensor:
        return self._back("sub", other)

    def __rmul__(self, other: Value) -> Tensor:
        return self._back("mul", other)

    def __rtruediv__(self, other: Value) -> Tensor:
        return self._back("div", other)

    def __rmod__(self, other: Value) -> Tensor:
        return self._back("mod", other)

    def __rpow__(self, other: Value) -> Tensor:
        return self._back("pow", other)

    def __neg__(self) -> Tensor:
        return self._op("neg")

    def __abs__(self) -> Tensor:
        return self._op("abs")

    def __lt__(self, other: Value) -> Tensor:
        return self._op("lt", other)

    def __le__(self, other: Value) -> Tensor:
        return self._op("le", other)

    def __gt__(self, other: Value) -> Tensor:
        return self._op("gt", other)

    def __ge__(self, other: Value) -> Tensor:
        return self._op("ge", other)

    def __eq__(self, other: Value) -> Tensor:  # type: ignore[override]
        return self._op("eq", other)

    def __ne__(self, other: Value) -> Tensor:  # type: ignore[override]
        return self._op("ne", other)

    def __and__(self, other: Tensor) -> Tensor:
        return self._op("and", other)

    def __or__(self, other: Tensor) -> Tensor:
        return self._op("or", other)

    def __invert__(self) -> Tensor:
        return self._op("not")

    def __bool__(self) -> bool:
        raise InvalidRequest("a tensor has no value while its program is written: use tensor.where, &, | and ~")

    def __getitem__(self, part: slice) -> Tensor:
        """Elements [start, stop) of the last axis."""
        if not isinstance(part, slice) or part.step is not None or not isinstance(part.stop, int):
            raise InvalidRequest("a part of a tensor is x[start:stop], of its last axis; `take` gives single elements")
        start, stop = (_convert.u32("a place", one) for one in (part.start or 0, part.stop))
        return self._op("slice", more=(start, stop))

    # -- over one axis

    def sum(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        """The sum."""
        return self._op("sum", more=_over(axis, keepdims))

    def mean(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        """The mean."""
        return self._op("mean", more=_over(axis, keepdims))

    def std(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        """The standard deviation of a population."""
        return self._op("std", more=_over(axis, keepdims))

    def max(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        """The greatest."""
        return self._op("max", more=_over(axis, keepdims))

    def min(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        """The least."""
        return self._op("min", more=_over(axis, keepdims))

    def any(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        """Whether one is true."""
        return self._op("any", more=_over(axis, keepdims))

    def all(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        """Whether all are true."""
        return self._op("all", more=_over(axis, keepdims))

    def argmax(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        """The place of the greatest; of several, the first."""
        return self._op("argmax", more=_over(axis, keepdims))

    def argmin(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        """The place of the least; of several, the first."""
        return self._op("argmin", more=_over(axis, keepdims))

    def logsumexp(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        """The logarithm of the sum of exponentials."""
        return self._op("logsumexp", more=_over(axis, keepdims))

    # -- along the last axis

    def softmax(self) -> Tensor:
        """Probabilities."""
        return self._op("softmax")

    def log_softmax(self) -> Tensor:
        """Log-probabilities, in nats."""
        return self._op("log_softmax")

    def cumsum(self) -> Tensor:
        """Running sums."""
        return self._op("cumsum")

    def sort(self, descending: bool = False) -> Tensor:
        """In order."""
        return self._op("sort", more=(_convert.boolean("descending", descending),))

    def argsort(self, descending: bool = False) -> Tensor:
        """Places in order; equals stay as they are."""
        return self._op("argsort", more=(_convert.boolean("descending", descending),))

    def rank(self, descending: bool = True) -> Tensor:
        """The number of each in the order, from 0: `x.rank() < k` are the k greatest."""
        return self._op("rank", more=(_convert.boolean("descending", descending),))

    def take(self, index: Value) -> Tensor:
        """Elements of a tensor with one axis; places outside of it count as the nearest."""
        return self._op("take", index)

    def scatter_add(self, index: Value, values: Value) -> Tensor:
        """This, of one axis, with values added at places."""
        return self._op("scatter_add", index, values)

    # -- shapes and types

    def unsqueeze(self, axis: int) -> Tensor:
        """With an axis of size 1 more."""
        return self._op("unsqueeze", more=(_axis(axis),))

    def squeeze(self, axis: int) -> Tensor:
        """Without an axis of size 1."""
        return self._op("squeeze", more=(_axis(axis),))

    def float(self) -> Tensor:
        """As float32."""
        return self._op("float")

    def int(self) -> Tensor:
        """As whole numbers, towards 0."""
        return self._op("int")

    def isfinite(self) -> Tensor:
        """Whether each is a finite number."""
        return self._op("isfinite")

    def iota(self, size: str) -> Tensor:
        """0, 1, 2, ... of a size: "V" (vocabulary), "H" (hidden size), "P" (pages), "A" (heads), "D" (head size)."""
        return self.trace.add("iota", _convert.text("size", size))


def _tensor(name: str, value: Any) -> Tensor:
    return _convert.instance(name, value, Tensor)


def _axis(axis: Any) -> int:
    return _convert.integer("axis", axis, -MAX_AXES, MAX_AXES)


def _over(axis: Any, keepdims: Any) -> tuple[int, bool]:
    return _axis(axis), _convert.boolean("keepdims", keepdims)


def where(condition: Tensor, left: Value, right: Value) -> Tensor:
    """`left` where the condition holds, else `right`."""
    return _tensor("condition", condition)._op("where", left, right)


def minimum(left: Tensor, right: Value) -> Tensor:
    """The lesser of two, element by element."""
    return _tensor("left", left)._op("minimum", right)


def maximum(left: Tensor, right: Value) -> Tensor:
    """The greater of two, element by element."""
    return _tensor("left", left)._op("maximum", right)


def exp(x: Tensor) -> Tensor:
    """e to its power."""
    return _tensor("x", x)._op("exp")


def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    return _tensor("x", x)._op("log")


def sqrt(x: Tensor) -> Tensor:
    """The square root."""
    return _tensor("x", x)._op("sqrt")


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return _tensor("x", x)._op("tanh")


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return _tensor("x", x)._op("sigmoid")


def floor(x: Tensor) -> Tensor:
    """The greatest whole number that is not above it."""
    return _tensor("x", x)._op("floor")


class TensorProgram:
    """A program in the engine, with states of its own.  Keep it open while what uses it runs; close it, or use it in
    `with`."""

    __slots__ = ("code", "id", "stage")

    def __init__(self, stage: str, code: str, states: Sequence[float] = ()) -> None:
        """`states`: what its states begin with, as `states` has given them; none: as the code says.

        Raises InvalidRequest naming the operation at fault, QuotaExceeded.
        """
        self.id = 0
        self.stage = _convert.text("stage", stage)
        self.code = _convert.text("code", code)
        self.id = _host.programs.create(self.code, _convert.f32s("states", states))

    async def states(self) -> list[float]:
        """All states in a line, as they are behind what has been answered."""
        ticket = _host.programs.states(self.id)
        await wait_ticket(ticket)
        return list(_host.tickets.take_floats(ticket))

    async def counts(self) -> dict[str, int]:
        """rows that it has run for; of stage "pages", pages_held and pages_read, over all layers that it runs in."""
        ticket = _host.programs.counts(self.id)
        await wait_ticket(ticket)
        return dict(json.loads(_host.tickets.take_text(ticket)))

    def again(self, states: Sequence[float] = ()) -> TensorProgram:
        """The same program with states of its own."""
        return TensorProgram(self.stage, self.code, states)

    def close(self) -> None:
        """Give it back; a second time does nothing."""
        handle, self.id = self.id, 0
        if handle:
            _host.programs.free([handle])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


Function: TypeAlias = Callable[..., Tensor]
Update: TypeAlias = Callable[..., Mapping[str, Value]]


def logits(
    function: Function, *, states: Mapping[str, Value | str] | None = None, update: Update | None = None
) -> TensorProgram:
    """A logits processor: from `logits` [V] (and `position`, and its states) to the logits that bias, mask,
    temperature and filters then see.

    `states`: by name, what each begins with: a number, a list, or a size as text ("V": as many zeros).  `update` gives
    their next values by name; it may take the `token` that was drawn too.
    """
    return _program("logits", function, states, update)


def draw(
    function: Function, *, states: Mapping[str, Value | str] | None = None, update: Update | None = None
) -> TensorProgram:
    """A sampler: from `logits` [V] behind bias and mask (and `position`, `uniform`, its states) to scores [V]: the
    token is drawn from their softmax, or is the greatest if the sampler's temperature is 0.  Others as for `logits`."""
    return _program("draw", function, states, update)


def hidden(
    function: Function,
    *,
    layers: Iterable[int] | None = None,
    states: Mapping[str, Value | str] | None = None,
    update: Update | None = None,
) -> TensorProgram:
    """Steering: from `hidden` [H], the residual stream of a token in front of each of the `layers` (None: all), to what
    goes on in its place.  Also `position` and `layer`.  States go on from the last token of a pass: so they read what
    is there (`read_hidden`)."""
    return _program("hidden", function, states, update, layers)


def read_hidden(layer: int) -> TensorProgram:
    """Changes nothing; its state [H] is the residual stream in front of a layer at the last token of the last pass."""
    return hidden(lambda hidden: hidden, layers=[layer], states={"seen": "H"}, update=lambda hidden: {"seen": hidden})


def pages(function: Function, *, layers: Iterable[int] | None = None) -> TensorProgram:
    """Which pages [P] attention of the `layers` (None: all) reads, as truth values, in passes of one token; the last
    page, that of the token, is always read.

    Of `bound` [P, A], the most that the query of each head times a key of each page can be; `query` [A, D]; `key_min`
    and `key_max` [P, A, D]; `position`, `layer`.  Layers with a sliding window read as they do.
    """
    return _program("pages", function, layers=layers)


def attention(*, states: Mapping[str, Value | str], update: Update) -> TensorProgram:
    """What a pass has attended to: `update` takes `mass` [P], the weights that its tokens gave to each page, in the
    mean over heads and layers (they add up to the number of tokens), `position`, and the states."""
    return _program("attention", None, states, update)


def steer(vector: Sequence[float], layer: int, scale: float = 1.0) -> TensorProgram:
    """Add `scale` times a vector [H] to the residual stream in front of a layer (Turner et al. 2023)."""
    by = _convert.number("scale", scale)
    values = [by * one for one in _convert.f32s("vector", vector)]
    return hidden(lambda hidden: hidden + values, layers=[layer])


def quest(num_pages: int, layers: Iterable[int] | None = None) -> TensorProgram:
    """Read the `num_pages` pages whose keys may matter most to some head, and the last one (Tang et al. 2024)."""
    most = min(_convert.u32("num_pages", num_pages), LARGEST_INT)
    return pages(lambda bound: bound.max().rank() < most, layers=layers)


def use(target: Pass | Plan | SamplerHandle, *programs: TensorProgram) -> None:
    """Run programs in a pass that is not sent yet, in a plan before it starts, or in the draws of a sampler."""
    given = _convert.instances("programs", programs, TensorProgram)
    if isinstance(target, SamplerHandle):
        _host.programs.for_sampler(target.id, *draws_of(given))
    elif isinstance(target, Plan):
        _host.programs.for_plan(target.handle, [one.id for one in given])
    else:
        _host.programs.for_pass(
            _convert.instance("target", target, Pass, Plan, SamplerHandle).id, [x.id for x in given]
        )


def draws_of(programs: Iterable[TensorProgram]) -> tuple[int, int]:
    """The handles of those of stages logits and draw, at most one of each; 0: none."""
    found = dict.fromkeys(DRAWS, 0)
    for one in _convert.instances("programs", programs, TensorProgram):
        if one.stage in found:
            if found[one.stage]:
                raise InvalidRequest(f"a sampler has at most one program of stage {one.stage}")
            found[one.stage] = one.id
    return found["logits"], found["draw"]


def in_pass(programs: Iterable[TensorProgram]) -> list[int]:
    """The handles of those that run in passes."""
    given = _convert.instances("programs", programs, TensorProgram)
    return [one.id for one in given if one.stage not in DRAWS]


def _program(
    stage: str,
    function: Function | None,
    states: Mapping[str, Value | str] | None = None,
    update: Update | None = None,
    layers: Iterable[int] | None = None,
) -> TensorProgram:
    trace, begun = _Trace(), {} if states is None else dict(_convert.instance("states", states, Mapping))  # type: ignore[type-abstract]
    for name in begun:
        _convert.text("the name of a state", name)
    names = list(begun)
    known = {name: number for number, name in enumerate(names)}

    def stand_in(name: str) -> Tensor:
        return trace.add("state", known[name]) if name in known else trace.add("input", name)

    result = None
    if function is not None:
        result = trace.of(_called(function, stand_in))
    updates: list[int] = []
    if begun:
        if update is None:
            raise InvalidRequest("states have an `update`: a function that gives their next values by name")
        changed = _called(update, lambda name: result if name == "result" and result is not None else stand_in(name))
        if not isinstance(changed, Mapping) or changed.keys() - begun.keys():
            raise InvalidRequest(f"update gives values by the names of states: {', '.join(names)}")
        updates = [trace.of(changed.get(name, stand_in(name))).number for name in names]
    code = {
        "stage": stage,
        "layers": None if layers is None else _convert.u32s("layers", layers),
        "ops": trace.ops,
        "result": None if result is None else result.number,
        "states": [_state(begun[name]) for name in names],
        "updates": updates,
    }
    return TensorProgram(stage, json.dumps(code, separators=(",", ":")))


def _called(function: Callable[..., Any], stand_in: Callable[[str], Tensor]) -> Any:
    """What a function gives for the tensors that its parameters name."""
    if not callable(function):
        raise InvalidRequest(f"a program is a function of tensors; given {_convert.shown(function)}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise InvalidRequest(f"a program is a function of tensors; given {_convert.shown(function)}") from None
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    return function(**{one.name: stand_in(one.name) for one in named if one.default is one.empty})


def _state(value: Value | str) -> list[Any]:
    """Shape and first values."""
    if isinstance(value, str):
        return [[_convert.text("the size of a state", value)], None]
    shape, numbers = _flat(value)
    return [shape, b64encode(array("f", _convert.f32s("a state", numbers)).tobytes()).decode()]


def _flat(value: Any, most: int = MAX_AXES) -> tuple[list[int], list[float]]:
    """Shape and numbers of lists nested at most so deep, or of one number."""
    if isinstance(value, (int, float)):
        return [], [value]
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value or not most:
        raise InvalidRequest(f"constants are numbers or lists of them; given {_convert.shown(value)}")
    if all(isinstance(one, (int, float)) for one in value):
        return [len(value)], list(value)
    parts = [_flat(one, most - 1) for one in value]
    if any(shape != parts[0][0] for shape, _ in parts):
        raise InvalidRequest("lists of a constant are equally long")
    return [len(value), *parts[0][0]], [number for _, numbers in parts for number in numbers]


inf = math.inf
