"""What a tensor program computes for one row, in plain numpy: the reference that the engine's are compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pieray.tensor.ops import decoded

Array = Any


def interpret(
    code: str, sizes: Mapping[str, int], inputs: Mapping[str, Array], states: Sequence[Array] = ()
) -> tuple[Array, list[Array]]:
    """The result and the next states of one row."""
    given = json.loads(code)
    values: list[Array] = []
    with np.errstate(all="ignore"):
        for name, *rest in given["ops"]:
            if name == "input":
                values.append(np.asarray(inputs[rest[0]]))
            elif name == "state":
                values.append(np.asarray(states[rest[0]], np.float32))
            else:
                values.append(_step(name, rest, values, sizes))
    result = None if given.get("result") is None else values[given["result"]]
    return result, [values[number] for number in given.get("updates") or []]


def _f(x: Array) -> Array:
    return np.asarray(x, np.float32)


def _step(name: str, rest: list[Any], values: list[Array], sizes: Mapping[str, int]) -> Array:
    if name == "const":
        shape, dtype, data = rest
        kind, wide = ("<i4", np.int64) if dtype == "int" else ("<f4", np.float32)
        return np.frombuffer(decoded(data), kind).astype(wide).reshape([sizes.get(d, d) for d in shape])
    if name == "iota":
        return np.arange(sizes.get(rest[0], rest[0]))
    if name in PLAIN:
        return PLAIN[name](*[values[number] for number in rest])
    x = values[rest[0]]
    if name in REDUCED:
        return REDUCED[name](x, axis=rest[1], keepdims=rest[2])
    if name in ("sort", "argsort", "rank"):
        order = np.argsort(-x if rest[1] else x, axis=-1, kind="stable")
        if name == "rank":
            return np.argsort(order, axis=-1, kind="stable")
        return order if name == "argsort" else np.take_along_axis(x, order, -1)
    if name == "take":
        return x[np.clip(values[rest[1]], 0, len(x) - 1)]
    if name == "scatter_add":
        found = np.array(x)
        np.add.at(found, np.clip(values[rest[1]], 0, len(x) - 1), values[rest[2]])
        return found
    if name == "slice":
        return x[..., rest[1] : rest[2]]
    return {"unsqueeze": np.expand_dims, "squeeze": np.squeeze}[name](x, rest[1])


def _mod(a: Array, b: Array) -> Array:
    if a.dtype == np.int64 and b.dtype == np.int64:
        return np.where(b == 0, 0, np.mod(a, np.where(b == 0, 1, b)))
    return np.mod(_f(a), _f(b))


def _softmax(x: Array) -> Array:
    weights = np.exp(_f(x) - _f(x).max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


PLAIN: dict[str, Any] = {
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sqrt": np.sqrt,
    "floor": np.floor,
    "isfinite": np.isfinite,
    "not": np.logical_not,
    "float": _f,
    "int": lambda x: np.trunc(np.nan_to_num(x)).astype(np.int64),
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "mod": _mod,
    "div": lambda a, b: _f(a) / _f(b),
    "pow": lambda a, b: _f(a) ** _f(b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "where": np.where,
    "softmax": _softmax,
    "log_softmax": lambda x: np.log(_softmax(x)),
    "cumsum": lambda x: np.cumsum(x, -1),
    "matmul": np.matmul,
}
REDUCED: dict[str, Any] = {
    "sum": np.sum,
    "mean": np.mean,
    "std": np.std,
    "max": np.max,
    "min": np.min,
    "any": np.any,
    "all": np.all,
    "argmax": np.argmax,
    "argmin": np.argmin,
    "logsumexp": lambda x, **how: np.log(np.sum(np.exp(x), **how)),
}
