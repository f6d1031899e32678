"""Sampler chains of the fake host: temperature, top-k, bias and mask; the rest is noted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random
from typing import Any

import fake_model as lm

from pieray.errors import BadHandle


@dataclass
class Chain:
    """What a guest has told of a sampler."""

    temperature: float
    top_k: int
    typical_p: float
    seed: int
    bias: dict[int, float] = field(default_factory=dict)
    mask: list[int] = field(default_factory=list)

    def draw(self, digest: int, position: int) -> tuple[str, Any]:
        weights = {
            token: p * math.exp(self.bias.get(token, 0.0))
            for token, p in lm.distribution(digest)
            if not self.mask or self.mask[token >> 5] >> (token & 31) & 1
        }
        choices = sorted((pair for pair in weights.items() if pair[1]), key=lambda pair: -pair[1])[: self.top_k or None]
        if not self.temperature:
            return "tokens", [choices[0][0]]
        tokens, probs = zip(*((t, p ** (1 / self.temperature)) for t, p in choices), strict=True)
        return "tokens", [Random(f"{self.seed}:{position}").choices(tokens, probs)[0]]


GREEDY = Chain(0.0, 0, 1.0, 0)


class FakeSamplers:
    """Handlers of the interface `samplers`."""

    samplers: dict[int, Chain]

    def samplers_create(
        self, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float, seed: int
    ) -> int:
        self.samplers[handle := next(self.ids)] = Chain(temperature, top_k, typical_p, seed)  # type: ignore[attr-defined]
        return handle

    def samplers_bias(self, sampler: int, tokens: Any, values: Any) -> None:
        self._chain(sampler).bias = dict(zip(map(int, tokens), map(float, values), strict=True))

    def samplers_allow(self, sampler: int, mask: Any) -> None:
        self._chain(sampler).mask = [int(word) for word in mask]

    def samplers_free(self, sampler: int) -> None:
        self._chain(sampler)
        del self.samplers[sampler]

    def forward_sample_with(self, pass_: int, row: int, sampler: int) -> int:
        ticket: int = self._ask(pass_, row, self._chain(sampler).draw)  # type: ignore[attr-defined]
        return ticket

    def _chain(self, sampler: int) -> Chain:
        if sampler not in self.samplers:
            raise BadHandle(f"sampler {sampler} is not this inferlet's")
        return self.samplers[sampler]
