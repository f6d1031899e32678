"""Sampler chains, as the guest has described them and as they travel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_BIAS = 4096
"""Tokens that one bias names at most: the chain travels with each draw."""


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """One chain: bias, allowed tokens, temperature, top-k, top-p, min-p, typical-p.  The defaults are greedy.

    A sampler handle names a value of this; changing the sampler replaces it, so that what was asked for earlier
    keeps what it had.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int = 0
    bias_tokens: bytes = b""  # u32
    bias_values: bytes = b""  # f32, one per token
    allowed: bytes = b""  # packed bits [vocab], least significant first; b"": all

    def to_wire(self) -> list[Any]:
        """[temperature, top_k, top_p, min_p, typical_p, seed, bias_tokens, bias_values, allowed]"""
        return [getattr(self, name) for name in self.__dataclass_fields__]


GREEDY = SamplerSpec()
