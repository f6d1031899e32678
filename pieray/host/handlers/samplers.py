"""WIT interface `samplers`: sampler chains."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from pieray.arrays import F32, U32
from pieray.errors import InvalidRequest
from pieray.host.models import ModelDirectory
from pieray.host.open_handles import OpenHandles
from pieray.messages import Sampler

MAX_BIAS = 4096
"""Tokens that one bias names at most: the chain travels with each draw."""


class SamplerHandlers:
    """A handle names a chain as it is now: a change makes a new value, and what was asked for keeps the old one."""

    def __init__(self, models: ModelDirectory, samplers: OpenHandles[Sampler]) -> None:
        self._vocabularies = sorted({one.info.vocab_size for one in models.all})
        self._samplers = samplers

    def create(self, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float, seed: int) -> int:
        _check_range("temperature", temperature, math.inf)
        for name, value in (("top-p", top_p), ("min-p", min_p), ("typical-p", typical_p)):
            _check_range(name, value, 1.0)
        return self._samplers.put(Sampler(temperature, top_k, top_p, min_p, typical_p, seed))

    def bias(self, sampler: int, tokens: U32, values: F32) -> None:
        found = self._samplers.get(sampler)
        vocab = max(self._vocabularies)
        if len(tokens) != len(values):
            raise InvalidRequest(f"a bias has one value per token; given {len(tokens)} tokens, {len(values)} values")
        if len(tokens) > MAX_BIAS:
            raise InvalidRequest(f"a bias names at most {MAX_BIAS} tokens (see samplers.allow); given {len(tokens)}")
        if len(tokens) and int(tokens.max()) >= vocab:
            raise InvalidRequest(f"token ids are below {vocab}; given {int(tokens.max())}")
        if len(np.unique(tokens)) != len(tokens):
            raise InvalidRequest("a bias names each token once; one was given twice")
        if not (values < np.inf).all():
            raise InvalidRequest("values of a bias are finite, or -inf; given NaN or inf")
        changed = dataclasses.replace(
            found, bias_tokens=tokens.astype("<u4").tobytes(), bias_values=values.astype("<f4").tobytes()
        )
        self._samplers.replace(sampler, changed)

    def allow(self, sampler: int, mask: U32) -> None:
        found = self._samplers.get(sampler)
        if len(mask) == 0:
            self._samplers.replace(sampler, dataclasses.replace(found, allowed=b""))
            return
        if all(-(-size // 32) != len(mask) for size in self._vocabularies):
            sizes = " or ".join(str(size) for size in self._vocabularies)
            words = " or ".join(str(-(-size // 32)) for size in self._vocabularies)
            raise InvalidRequest(f"a mask of {sizes} tokens takes {words} words, or none; given {len(mask)}")
        allowed = mask.astype("<u4").tobytes()
        if len(self._vocabularies) == 1:  # else the model cuts it that it is used on
            allowed = allowed[: -(-self._vocabularies[0] // 8)]
        self._samplers.replace(sampler, dataclasses.replace(found, allowed=allowed))

    def free(self, sampler: int) -> None:
        self._samplers.pop(sampler)


def _check_range(name: str, value: float, high: float) -> None:
    if not 0.0 <= value <= high or math.isinf(value):
        raise InvalidRequest(f"{name} is a finite number from 0.0 to {high}; given {value}")
