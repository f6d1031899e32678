"""How the next token is chosen."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import _convert, _host
from . import model as models
from .errors import InvalidRequest
from .grammar import Matcher
from .runtime import random_u64


@dataclass(frozen=True, slots=True)
class Sampler:
    """A sampler chain: bias, allowed tokens, temperature, top-k, top-p, min-p, typical-p.

    Temperature 0 takes the most probable token.
    """

    temperature: float = 1.0
    top_k: int = 0
    """Only the k most probable tokens; 0 is off."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach p; 1 is off."""
    min_p: float = 0.0
    """Only tokens at least p times as probable as the best; 0 is off."""
    seed: int | None = None
    """The draws depend on the seed and the position alone; None draws a fresh seed."""
    typical_p: float = 1.0
    """Only the tokens nearest to the expected information that together reach p (Meister et al. 2022); 1 is off."""
    logit_bias: Mapping[int | str, float] = field(default_factory=dict, hash=False)
    """What is added to the logits of tokens, by id or by a text that is one token; -inf bans a token.  At most 4096."""
    allowed: Collection[int | str] | Matcher | None = field(default=None, hash=False)
    """Only these tokens, by id or by a text that is one token, or what a matcher allows when it is used; None: all."""
    other_bias: float = 0.0
    """What is added to the logits of all tokens that `logit_bias` does not name: a rule for most of the vocabulary."""

    def __post_init__(self) -> None:
        _convert.number("temperature", self.temperature, 0.0)
        _convert.u32("top_k", self.top_k)
        _convert.number("top_p", self.top_p, 0.0, 1.0)
        _convert.number("min_p", self.min_p, 0.0, 1.0)
        _convert.number("typical_p", self.typical_p, 0.0, 1.0)
        bias: Any = _convert.instance("logit_bias", self.logit_bias, Mapping)  # type: ignore[type-abstract]
        for token, value in bias.items():
            _check_token(token)
            if not _convert.f32("a logit bias", value) < math.inf:
                raise InvalidRequest(f"a logit bias is below infinity; given {value} for {token!r:.100}")
        if abs(_convert.number("other_bias", self.other_bias)) == math.inf:
            raise InvalidRequest(f"other_bias is finite: `allowed` bans all others; given {self.other_bias}")
        if self.allowed is not None and not isinstance(self.allowed, Matcher):
            for token in _convert.items("allowed", self.allowed, "token ids or texts"):
                _check_token(token)
        if self.seed is not None:
            _convert.u64("seed", self.seed)

    @property
    def is_plain(self) -> bool:
        """Whether its numbers alone say it all, as `forward.sample` takes them: no handle is needed then."""
        return self.typical_p == 1.0 and not self.logit_bias and self.allowed is None

    def numbers(self) -> tuple[float, int, float, float, int]:
        """temperature, top-k, top-p, min-p, seed: what `forward.sample` takes.  A seed is drawn where none is set."""
        seed = self.seed
        if seed is None:
            seed = random_u64() if self.temperature else 0
        return float(self.temperature), self.top_k, float(self.top_p), float(self.min_p), seed

    def mask(self, model: str = "") -> list[int]:
        """The tokens allowed, one bit each, packed into u32; empty: all."""
        if isinstance(self.allowed, Matcher):
            return self.allowed.mask()
        return [] if self.allowed is None else _mask(self.allowed, model)

    def handle(self, model: str = "") -> SamplerHandle:
        """The chain as the host holds it, with one seed for all draws; close it when it is needed no more."""
        return SamplerHandle(self, model)


class SamplerHandle:
    """A sampler in the host.  What was asked with it keeps it as it was; close it, or use it in `with`."""

    __slots__ = ("id",)

    def __init__(self, sampler: Sampler, model: str = "") -> None:
        self.id = 0
        _convert.instance("sampler", sampler, Sampler)
        self.id = open_chain(sampler, sampler.numbers()[-1], model)

    def close(self) -> None:
        """Give the handle back; a second time does nothing."""
        handle, self.id = self.id, 0
        if handle:
            _host.samplers.free(handle)

    def __enter__(self) -> SamplerHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # nobody is there to be told
            self.close()


def open_chain(sampler: Sampler, seed: int, model: str = "") -> int:
    """The handle of a chain with this seed, for who frees it with `_host.samplers.free`."""
    # a constant added to all logits changes no probability: what the others would get more, the named ones get less
    shift = float(sampler.other_bias)
    bias = {_token(token, model): float(value) - shift for token, value in sampler.logit_bias.items()}
    mask = sampler.mask(model)
    temperature, top_k, top_p, min_p, _ = sampler.numbers()
    handle = _host.samplers.create(temperature, top_k, top_p, min_p, sampler.typical_p, seed)
    try:
        if bias:
            _host.samplers.bias(handle, list(bias), list(bias.values()))
        if mask:
            _host.samplers.allow(handle, mask)
    except BaseException:
        _host.samplers.free(handle)
        raise
    return handle


def greedy() -> Sampler:
    """Always the most probable token."""
    return Sampler(temperature=0.0)


def sampler_of(
    sampler: Sampler | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int | None,
    typical_p: float | None = None,
    logit_bias: Mapping[int | str, float] | None = None,
) -> Sampler:
    """One sampler from what `generate` was given: greedy if nothing was, or a bias alone."""
    named: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "typical_p": typical_p,
        "logit_bias": logit_bias,
    }
    given = {name: value for name, value in named.items() if value is not None}
    if sampler is None:
        is_drawn = bool(given.keys() - {"logit_bias"})
        return Sampler(**given) if is_drawn else Sampler(temperature=0.0, **given)
    _convert.instance("sampler", sampler, Sampler)
    if given:
        raise InvalidRequest(f"give either sampler or {', '.join(given)}")
    return sampler


def _token(token: int | str, model: str) -> int:
    if isinstance(token, int):
        return token
    ids = models.tokenize(token, model)
    if len(ids) != 1:
        raise InvalidRequest(f"{token!r} is {len(ids)} tokens, {ids[:8]}; name one token, or give ids")
    return ids[0]


def _mask(allowed: Collection[int | str], model: str) -> list[int]:
    """One bit per token, packed into u32."""
    vocab = int(models.info(model)["vocab_size"])
    words = [0] * -(-vocab // 32)
    for token in allowed:
        found = _token(token, model)
        if found >= vocab:
            raise InvalidRequest(f"token ids are below {vocab}; given {found}")
        words[found >> 5] |= 1 << (found & 31)
    return words


def _check_token(token: int | str) -> None:
    if isinstance(token, str):
        _convert.text("a token", token)
    else:
        _convert.u32("a token id", token)
