"""Sampling, vectorised over the rows of a step: each row has its own parameters and its own random number.

Filters act as in transformers, in its order: temperature, top_k (ties with the k-th are kept), top_p (the smallest
set that reaches it, at least one), min_p (relative to the most likely), typical_p (Meister et al. 2022).  A row's token
depends on its logits, its parameters, its seed and its counter alone, never on what else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pieray.errors import InvalidRequest
from pieray.kernels.sample_cpu import CHOICE, is_supported, sample_rows

#: how many candidates top_p looks at before it sorts the whole vocabulary
NUCLEUS_GUESS = 1024
#: rows whose entropies are computed at a time, in double precision
ENTROPY_ROWS = 64
#: what fits in the u32 of the guest's interface
MAX_TOP_K = 0xFFFFFFFF
WORD = 0xFFFFFFFFFFFFFFFF
Bias = tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]
#: the value at which a filter does nothing
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """temperature 0: greedy; top_k 0, top_p 1, min_p 0, typical_p 1: off; seed None: the engine's own."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    typical_p: float = 1.0

    def check(self) -> None:
        """Raise InvalidRequest that names the field, its range and the value given."""
        if (
            0 <= self.temperature < math.inf
            and 0 <= self.top_k <= MAX_TOP_K
            and 0 <= self.top_p <= 1
            and 0 <= self.min_p <= 1
            and 0 <= self.typical_p <= 1
        ):
            return
        _check("temperature", self.temperature, 0.0, math.inf)
        _check("top_k", self.top_k, 0, MAX_TOP_K)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("typical_p", self.typical_p, 0.0, 1.0)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        raise InvalidRequest(f"{name} is {value}; it must be in [{low}, {high}]")


def uniforms(seeds: Sequence[int], counters: Sequence[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per row from (seed, counter), by two rounds of splitmix64 (Steele et al., OOPSLA 2014)."""
    seed = np.array([value & WORD for value in seeds], np.uint64)
    counter = np.array([value & WORD for value in counters], np.uint64)
    with np.errstate(over="ignore"):
        mixed = _splitmix(_splitmix(seed) + counter)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sample(
    logits: torch.Tensor, params: Sequence[SamplingParams], counters: Sequence[int], default_seed: int = 0
) -> torch.Tensor:
    """Tokens int64 [R] from logits [R, vocab] (any float dtype), on their device; in C on the CPU, else in torch."""
    if is_supported(logits):
        return sample_rows(logits, _choices(params, counters, default_seed))
    return sample_torch(logits, params, counters, default_seed)


def _choices(params: Sequence[SamplingParams], counters: Sequence[int], default_seed: int) -> npt.NDArray[np.void]:
    table = [
        (
            given.temperature,
            given.top_p,
            given.min_p,
            given.typical_p,
            given.top_k,
            (default_seed if given.seed is None else given.seed) & WORD,
            counter & WORD,
        )
        for given, counter in zip(params, counters, strict=False)
    ]
    return np.array(table, CHOICE)


def sample_torch(
    logits: torch.Tensor, params: Sequence[SamplingParams], counters: Sequence[int], default_seed: int = 0
) -> torch.Tensor:
    """As `sample`, in torch on any device; also the reference of kernels/sample_cpu.c."""
    tokens = logits.argmax(-1)
    rows = [row for row, given in enumerate(params) if given.temperature > 0]
    if rows:
        drawn = [params[row] for row in rows]
        seeds = [default_seed if given.seed is None else given.seed for given in drawn]
        uniform = _column(uniforms(seeds, [counters[row] for row in rows]), logits)
        tokens[rows] = _draw(filtered(logits[rows], drawn), uniform)
    return tokens


def filtered(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """What rows with temperature > 0 draw from: float32 [R, vocab], at most 0, -inf where a filter removed the token.

    Tokens that tie with the last one kept are kept, so that the result does not hang on the order of a sort.
    """
    shifted = logits.float() - logits.float().amax(-1, keepdim=True)  # a tiny temperature must not overflow
    scaled = shifted / _column([given.temperature for given in params], logits).float().clamp_min(1e-6)
    for name, threshold in (("top_k", _top_k), ("top_p", _top_p), ("min_p", _min_p)):
        rows = [row for row, given in enumerate(params) if getattr(given, name) != OFF[name]]
        if rows:
            limit = threshold(scaled[rows], [getattr(params[row], name) for row in rows])
            scaled[rows] = scaled[rows].masked_fill(scaled[rows] < limit, -torch.inf)
    rows = [row for row, given in enumerate(params) if given.typical_p != OFF["typical_p"]]
    if rows:
        is_far = _is_untypical(scaled[rows], [params[row].typical_p for row in rows])
        scaled[rows] = scaled[rows].masked_fill(is_far, -torch.inf)
    return scaled


def _top_k(scaled: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
    ranks = torch.tensor([min(k, scaled.shape[-1]) for k in given], device=scaled.device)[:, None]
    return scaled.topk(int(ranks.max()), -1).values.gather(-1, ranks - 1)


def _top_p(scaled: torch.Tensor, given: Sequence[float]) -> torch.Tensor:
    goal = _column(given, scaled) * scaled.double().exp().sum(-1, keepdim=True)
    for width in (NUCLEUS_GUESS, scaled.shape[-1]):
        values = scaled.topk(min(width, scaled.shape[-1]), -1).values
        weights = values.double().exp()
        num_kept = (weights.cumsum(-1) - weights < goal).sum(-1, keepdim=True).clamp_min(1)
        if int(num_kept.max()) < values.shape[-1]:
            break
    return values.gather(-1, num_kept - 1)


def _min_p(scaled: torch.Tensor, given: Sequence[float]) -> torch.Tensor:
    return _column(given, scaled).log().float()  # the most likely token is at 0


def _is_untypical(scaled: torch.Tensor, given: Sequence[float]) -> torch.Tensor:
    """Tokens farther from the mean of `scaled` than those that, from the nearest on, hold `given` of the mass.

    The mean of log-probabilities is minus the entropy, so that is the distance of a token's surprise from it.
    """
    weights = scaled.double().exp()
    total = weights.sum(-1, keepdim=True)
    mean = (weights * scaled.nan_to_num(neginf=0.0)).sum(-1, keepdim=True) / total
    distance = (scaled.double() - mean).abs().float()
    nearest = distance.sort(-1)
    num_short = (weights.gather(-1, nearest.indices).cumsum(-1) < _column(given, scaled) * total).sum(-1, keepdim=True)
    return distance > nearest.values.gather(-1, num_short.clamp_max(scaled.shape[-1] - 1))


def _draw(scaled: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse of the distribution function: the first token whose running sum exceeds uniform [R, 1] * total."""
    running = scaled.double().exp().cumsum(-1)
    index = torch.searchsorted(running, uniform * running[:, -1:], right=True)
    return index.clamp_max(scaled.shape[-1] - 1)[:, 0]


def _column(values: Sequence[float] | npt.NDArray[np.float64], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(np.asarray(values, np.float64), device=like.device)[:, None]


def add_bias(logits: torch.Tensor, biases: Sequence[Bias | None]) -> torch.Tensor:
    """Rows with a (token ids, values) get the values added at these ids, which are distinct; -inf bans a token."""
    given = [(row, *bias) for row, bias in enumerate(biases) if bias is not None]
    if not given:
        return logits
    owner = np.concatenate([np.full(len(ids), row, np.int64) for row, ids, _ in given])
    column = np.concatenate([ids for _, ids, _ in given]).astype(np.int64)
    biased = logits.clone()
    where = torch.from_numpy(owner).to(logits.device), torch.from_numpy(column).to(logits.device)
    biased[where] += torch.from_numpy(np.concatenate([values for _, _, values in given])).to(logits)
    return biased


def mask_tokens(logits: torch.Tensor, allowed: Sequence[bytes | None]) -> torch.Tensor:
    """-inf where a row's bit (little-endian, 1 = allowed, [vocab] bits) is 0; rows with None stay as they are."""
    rows = [row for row, bits in enumerate(allowed) if bits is not None]
    if not rows:
        return logits
    vocab = logits.shape[-1]
    packed = np.frombuffer(b"".join(allowed[row] or b"" for row in rows), np.uint8).reshape(len(rows), -1)
    banned = np.unpackbits(packed, axis=1, count=vocab, bitorder="little") == 0
    masked = logits.clone()
    masked[rows] = masked[rows].masked_fill(torch.from_numpy(banned).to(logits.device), -torch.inf)
    return masked


def distribution(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k most likely ids (int64) and probabilities (float32) of each row, [R, min(k, vocab)], in order; 0 = all."""
    probs = logits.float().softmax(-1)
    values, ids = probs.topk(min(k or probs.shape[-1], probs.shape[-1]), -1)
    return ids, values


def entropies(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of each row's distribution in nats, float32 [R]: 0 to log(vocab)."""
    parts = []
    for start in range(0, len(logits), ENTROPY_ROWS):
        logs = logits[start : start + ENTROPY_ROWS].double().log_softmax(-1)
        parts.append((-(logs.exp() * logs.clamp_min(-1e9)).sum(-1)).clamp_min(0).float())
    return torch.cat(parts)


def logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """log p of token_ids [R, n] (int64) under logits [R, vocab]: float32 [R, n]."""
    return logits.float().gather(-1, token_ids) - logits.float().logsumexp(-1, keepdim=True)


def logprobs_at(logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """log p of token_ids [n] (int64), each in its row of `rows` [n] (int64): float32 [n]."""
    rows, token_ids = rows.to(logits.device), token_ids.to(logits.device)
    return logits[rows, token_ids].float() - logits.float().logsumexp(-1)[rows]
