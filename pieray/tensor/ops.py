"""The operations of tensor programs: what each takes, the type that it gives, and how much it computes for a row.

An operation travels as `[name, operands..., attributes...]`; operands are the numbers of earlier operations.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pieray.errors import InvalidRequest
from pieray.tensor.types import BOOL, DTYPES, FLOAT, INT, MAX_RANK, PAGES, Dim, Shape, Sizes, Type, broadcast, resolved

Rule = Callable[[Sequence[Type], Sequence[Any], Sizes], Type]


@dataclass(frozen=True, slots=True)
class Op:
    """`rule` gives the type of the result from those of the operands and the attributes, or raises InvalidRequest."""

    num_operands: int
    num_attributes: int
    rule: Rule
    work: float = 1.0
    """Computed for each element of the operands and the result."""


def _need(given: Type, *dtypes: str) -> None:
    if given.dtype not in dtypes:
        raise InvalidRequest(f"takes {' or '.join(dtypes)}; given {given}")


def _same(*dtypes: str) -> Rule:
    def rule(types: Sequence[Type], _: Sequence[Any], __: Sizes) -> Type:
        _need(types[0], *dtypes)
        return types[0]

    return rule


def _to(dtype: str, *dtypes: str) -> Rule:
    def rule(types: Sequence[Type], _: Sequence[Any], __: Sizes) -> Type:
        _need(types[0], *(dtypes or DTYPES))
        return Type(dtype, types[0].shape)

    return rule


def _pair(result: str | None, *dtypes: str) -> Rule:
    """Elementwise over two; `result` None: float unless both are int."""

    def rule(types: Sequence[Type], _: Sequence[Any], __: Sizes) -> Type:
        for one in types:
            _need(one, *dtypes)
        both = INT if all(one.dtype == INT for one in types) else FLOAT
        return Type(result or both, broadcast(types[0].shape, types[1].shape))

    return rule


def _where(types: Sequence[Type], _: Sequence[Any], __: Sizes) -> Type:
    condition, left, right = types
    _need(condition, BOOL)
    if (left.dtype == BOOL) != (right.dtype == BOOL):
        raise InvalidRequest(f"takes two numbers or two truth values to choose from; given {left} and {right}")
    dtype = left.dtype if left.dtype == right.dtype else FLOAT
    return Type(dtype, broadcast(condition.shape, broadcast(left.shape, right.shape)))


def axis_of(axis: Any, rank: int) -> int:
    """A checked axis, from 0."""
    if isinstance(axis, bool) or not isinstance(axis, int) or not -rank <= axis < rank:
        raise InvalidRequest(f"an axis of {rank} is from {-rank} to {rank - 1}; given {str(axis)[:20]}")
    return axis % rank


def _reduced(dtype: str | None, *dtypes: str) -> Rule:
    """Over one axis; the attributes are the axis and whether it is kept with size 1."""

    def rule(types: Sequence[Type], attributes: Sequence[Any], _: Sizes) -> Type:
        _need(types[0], *dtypes)
        shape = list(types[0].shape)
        axis, is_kept = axis_of(attributes[0], len(shape)), attributes[1]
        if not isinstance(is_kept, bool):
            raise InvalidRequest(f"whether the axis is kept is true or false; given {str(is_kept)[:20]}")
        shape[axis : axis + 1] = [1] if is_kept else []
        return Type(dtype or types[0].dtype, tuple(shape))

    return rule


def _along(dtype: str | None, num_flags: int = 0) -> Rule:
    """Along the last axis, which stays."""

    def rule(types: Sequence[Type], attributes: Sequence[Any], _: Sizes) -> Type:
        _need(types[0], FLOAT, INT)
        if not types[0].shape:
            raise InvalidRequest("takes a value with at least one axis; given a number")
        if not all(isinstance(flag, bool) for flag in attributes[:num_flags]):
            raise InvalidRequest("whether it falls is true or false")
        return Type(dtype or types[0].dtype, types[0].shape)

    return rule


def _take(types: Sequence[Type], _: Sequence[Any], __: Sizes) -> Type:
    _need(types[1], INT)
    if len(types[0].shape) != 1:
        raise InvalidRequest(f"takes from a value with one axis; given {types[0]}")
    return Type(types[0].dtype, types[1].shape)


def _scatter(types: Sequence[Type], _: Sequence[Any], __: Sizes) -> Type:
    base, index, values = types
    _need(base, FLOAT)
    _need(index, INT)
    _need(values, FLOAT)
    if len(base.shape) != 1 or len(index.shape) > 1 or values.shape not in (index.shape, ()):
        raise InvalidRequest(f"adds values at indices, as many of each, to one axis; given {base}, {index}, {values}")
    return base


def _slice(types: Sequence[Type], attributes: Sequence[Any], _: Sizes) -> Type:
    shape = types[0].shape
    if not shape or isinstance(shape[-1], str):
        raise InvalidRequest(f"takes a part of a last axis of known size; given {types[0]}")
    start, stop = attributes
    if not (_is_int(start) and _is_int(stop) and 0 <= start < stop <= shape[-1]):
        raise InvalidRequest(f"a part of {shape[-1]} is from start to stop within it; given {attributes}")
    return Type(types[0].dtype, (*shape[:-1], stop - start))


def _unsqueeze(types: Sequence[Type], attributes: Sequence[Any], _: Sizes) -> Type:
    shape = list(types[0].shape)
    if len(shape) == MAX_RANK:
        raise InvalidRequest(f"values have at most {MAX_RANK} axes")
    shape.insert(axis_of(attributes[0], len(shape) + 1), 1)
    return Type(types[0].dtype, tuple(shape))


def _squeeze(types: Sequence[Type], attributes: Sequence[Any], _: Sizes) -> Type:
    shape = list(types[0].shape)
    axis = axis_of(attributes[0], len(shape))
    if shape[axis] != 1:
        raise InvalidRequest(f"takes an axis of size 1 out; given {types[0]}")
    del shape[axis]
    return Type(types[0].dtype, tuple(shape))


def _matmul(types: Sequence[Type], _: Sequence[Any], __: Sizes) -> Type:
    left, right = types
    _need(left, FLOAT)
    _need(right, FLOAT)
    if not left.shape or len(right.shape) != 2 or left.shape[-1] != right.shape[0] or len(left.shape) > 2:
        raise InvalidRequest(f"takes [.., k] and [k, n]; given {left} and {right}")
    return Type(FLOAT, (*left.shape[:-1], right.shape[1]))


def _iota(_: Sequence[Type], attributes: Sequence[Any], sizes: Sizes) -> Type:
    return Type(INT, resolved([attributes[0]], sizes))


def _const(_: Sequence[Type], attributes: Sequence[Any], sizes: Sizes) -> Type:
    shape, dtype, data = attributes
    if dtype not in (FLOAT, INT) or not isinstance(shape, list) or not isinstance(data, str):
        raise InvalidRequest("a constant is [shape, float or int, base64]")
    full = resolved(shape, sizes)
    if PAGES in full:
        raise InvalidRequest("a constant has a known size")
    num_bytes = len(decoded(data))
    if num_bytes != sizes.count(full) * 4:
        raise InvalidRequest(f"a constant of {list(full)} has {sizes.count(full) * 4} bytes; given {num_bytes}")
    return Type(dtype, full)


def decoded(data: str) -> bytes:
    """Bytes of a constant: 4 an element, little-endian float32 or int32."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("a constant is base64 (RFC 4648, section 4)") from None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_NUMBERS = FLOAT, INT
OPS: Mapping[str, Op] = {
    "const": Op(0, 3, _const),
    "iota": Op(0, 1, _iota),
    **dict.fromkeys(("neg", "abs"), Op(1, 0, _same(*_NUMBERS))),
    **dict.fromkeys(("exp", "log", "tanh", "sigmoid", "sqrt", "floor"), Op(1, 0, _to(FLOAT, FLOAT), 4.0)),
    "isfinite": Op(1, 0, _to(BOOL, FLOAT)),
    "not": Op(1, 0, _to(BOOL, BOOL)),
    "float": Op(1, 0, _to(FLOAT)),
    "int": Op(1, 0, _to(INT)),
    **dict.fromkeys(("add", "sub", "mul", "minimum", "maximum", "mod"), Op(2, 0, _pair(None, *_NUMBERS))),
    "div": Op(2, 0, _pair(FLOAT, *_NUMBERS)),
    "pow": Op(2, 0, _pair(FLOAT, *_NUMBERS), 8.0),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), Op(2, 0, _pair(BOOL, *_NUMBERS))),
    **dict.fromkeys(("and", "or"), Op(2, 0, _pair(BOOL, BOOL))),
    "where": Op(3, 0, _where),
    **dict.fromkeys(("sum", "max", "min"), Op(1, 2, _reduced(None, *_NUMBERS))),
    **dict.fromkeys(("mean", "std"), Op(1, 2, _reduced(FLOAT, *_NUMBERS), 2.0)),
    "logsumexp": Op(1, 2, _reduced(FLOAT, FLOAT), 5.0),
    **dict.fromkeys(("any", "all"), Op(1, 2, _reduced(BOOL, BOOL))),
    **dict.fromkeys(("argmax", "argmin"), Op(1, 2, _reduced(INT, *_NUMBERS))),
    **dict.fromkeys(("softmax", "log_softmax"), Op(1, 0, _along(FLOAT), 8.0)),
    "cumsum": Op(1, 0, _along(None)),
    "sort": Op(1, 1, _along(None, 1), 40.0),
    "argsort": Op(1, 1, _along(INT, 1), 40.0),
    "rank": Op(1, 1, _along(INT, 1), 60.0),
    "take": Op(2, 0, _take),
    "scatter_add": Op(3, 0, _scatter),
    "slice": Op(1, 2, _slice),
    "unsqueeze": Op(1, 1, _unsqueeze),
    "squeeze": Op(1, 1, _squeeze),
    "matmul": Op(2, 0, _matmul),
}


def work_of(name: str, op: Op, types: Sequence[Type], result: Type, sizes: Sizes) -> int:
    """Operations that it takes for a row, at most."""
    if name == "matmul":
        left: Shape = types[0].shape
        last: Dim = types[1].shape[1]
        return 2 * sizes.count((*left, last))
    return math.ceil(op.work * (sizes.count(result.shape) + sum(sizes.count(one.shape) for one in types)))
