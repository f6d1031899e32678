"""The options of `Context.generate`, for the functions that pass them on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from ._draws import Choose, Drafter
from ._generation import OnToken
from .adapters import Adapter
from .grammar import Grammar, Matcher
from .sampler import Sampler
from .tensor import TensorProgram

if TYPE_CHECKING:
    from .context import Context


class FreeOptions(TypedDict, total=False):
    """What `generate` takes besides max_tokens and what the text must be."""

    sampler: Sampler | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    logit_bias: Mapping[int | str, float] | None
    seed: int | None
    stop: str | Iterable[str | int]
    stop_tokens: Iterable[int] | None
    logprobs: bool
    drafter: Drafter | str | None
    adapter: Adapter | None
    on_token: OnToken | None
    choose: Choose | None
    beside: Iterable[Context]
    deadline_s: float | None
    programs: Iterable[TensorProgram]


class Options(FreeOptions, total=False):
    """What `generate` takes besides max_tokens."""

    grammar: Grammar | Matcher | None
    schema: Any
