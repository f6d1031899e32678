"""Distributions over tokens as lists of floats: what a sampler of your own (`generate(choose=...)`) is made of.

def hotter_when_sure(logits: list[float]) -> int:
    probabilities = sampling.softmax(logits)
    return sampling.draw(sampling.softmax(logits, 1.5 if max(probabilities) > 0.9 else 0.7))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from random import Random
from typing import TYPE_CHECKING, TypeVar

from . import _convert, runtime
from .errors import InvalidRequest

if TYPE_CHECKING:
    from typing import ParamSpec

    P = ParamSpec("P")
T = TypeVar("T")

MOST_NUMBERS = 1 << 20


def _typed(function: Callable[P, T]) -> Callable[P, T]:
    """What is no list of numbers, or none that it can be done with, is InvalidRequest."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (TypeError, AttributeError, ValueError, ArithmeticError, LookupError) as error:
            raise InvalidRequest(f"{function.__name__}: {error}") from None

    return checked


@_typed
def argmax(values: Sequence[float]) -> int:
    """The index of the greatest value; of several, the first."""
    return max(range(len(values)), key=values.__getitem__)


@_typed
def log_softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Log-probabilities (nats) of logits over `temperature`, which is above 0; a logit of -inf stays -inf."""
    inverse = 1.0 / _above_zero(temperature)
    top = max(logits)
    shift = top * inverse + math.log(sum(math.exp((logit - top) * inverse) for logit in logits))
    return [logit * inverse - shift for logit in logits]


@_typed
def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Probabilities of logits over `temperature`, which is above 0; a logit of -inf has none."""
    inverse = 1.0 / _above_zero(temperature)
    top = max(logits)
    weights = [math.exp((logit - top) * inverse) for logit in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


@_typed
def entropy(probabilities: Sequence[float]) -> float:
    """In nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


@_typed
def keep(weights: Sequence[float], indices: Collection[int]) -> list[float]:
    """The weights of these indices, and 0 for all others, scaled to add up to 1."""
    total = sum(weights[index] for index in indices)
    if not total > 0:
        raise InvalidRequest("nothing is left to draw: the indices that are kept have no weight")
    kept = [0.0] * len(weights)
    for index in indices:
        kept[index] = weights[index] / total
    return kept


@_typed
def draw(weights: Sequence[float], random: Callable[[], float] | None = None) -> int:
    """An index, each as likely as its weight.  `random`: gives numbers in [0, 1); None: `runtime.random`."""
    left = (random or runtime.random)() * sum(weights)
    last = -1
    for index, weight in enumerate(weights):
        if weight > 0:
            last = index
            left -= weight
            if left < 0:
                break
    if last < 0:
        raise InvalidRequest("no index has a weight above 0")
    return last


def randoms(seed: int | None) -> Callable[[], float]:
    """Numbers in [0, 1) for `draw`, the same ones for the same seed; None: those of `runtime.random`."""
    return runtime.random if seed is None else Random(_convert.u64("seed", seed)).random


@_typed
def noise(n: int, *key: int | str) -> list[float]:
    """`n` numbers in [0, 1) that look random and follow from `key` alone, in every run: what watermarks are made of."""
    n = _convert.u32("n", n)
    if n > MOST_NUMBERS:
        raise InvalidRequest(f"noise gives at most {MOST_NUMBERS} numbers; given {n}")
    random = Random("/".join(map(str, key))).random
    return [random() for _ in range(n)]


def _above_zero(temperature: float) -> float:
    temperature = _convert.number("temperature", temperature, 0.0)
    if temperature == 0:
        raise InvalidRequest("temperature is above 0 here: `argmax` takes the most probable token")
    return temperature
