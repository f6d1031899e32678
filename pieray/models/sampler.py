"""Sampling, vectorised over the rows of a step: each row has its own parameters and its own random number.

Filters act as in transformers, in its order: temperature, top_k (ties with the k-th are kept), top_p (the smallest
set that reaches it, at least one), min_p (relative to the most likely), typical_p (Meister et al. 2022).  A row's token
depends on its logits, its parameters, its seed and its counter alone, never on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from pieray.arrays import F32, F64, I64, U32, U64
from pieray.kernels.meta import DrawColumns
from pieray.kernels.sample_cpu import CHOICE, is_supported, sample_rows
from pieray.messages import Sampler

#: how many candidates top_p looks at before it sorts the whole vocabulary
NUCLEUS_GUESS = 1024
#: rows whose entropies are computed at a time, in double precision
ENTROPY_ROWS = 64
WORD = 0xFFFFFFFFFFFFFFFF
Choices = npt.NDArray[np.void]
Bias = tuple[U32, F32]
#: the value at which a filter does nothing
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


def choices_of(samplers: Sequence[Sampler], counters: Sequence[int]) -> Choices:
    """What draws with these samplers go by, but for bias and mask: CHOICE records."""
    return np.array(
        [
            (one.temperature, one.top_p, one.min_p, one.typical_p, one.top_k, one.seed & WORD, counter & WORD)
            for one, counter in zip(samplers, counters, strict=False)
        ],
        CHOICE,
    )


def draw_columns(choices: Choices) -> dict[str, npt.NDArray[np.generic]]:
    """The fields of `DrawColumns`, each [C]."""
    temperatures = choices["temperature"]
    with np.errstate(divide="ignore"):
        log_min_ps = np.log(choices["min_p"])
    return {
        "temperatures": np.where(temperatures > 0, np.maximum(temperatures, 1e-6), 0).astype(np.float32),
        "top_ps": choices["top_p"],
        "log_min_ps": log_min_ps.astype(np.float32),
        "top_ks": np.minimum(choices["top_k"], np.iinfo(np.int32).max).astype(np.int32),
        "uniforms": uniforms(choices["seed"], choices["counter"]),
    }


def uniforms(seeds: U64, counters: U64) -> F64:
    """One number in [0, 1) per row from (seed, counter), by two rounds of splitmix64 (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        mixed = _splitmix(_splitmix(seeds) + counters)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(state: U64) -> U64:
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sample(logits: torch.Tensor, choices: Choices, rows: I64 | None = None) -> torch.Tensor:
    """Tokens int64 [C] from CHOICE records [C], and `rows` [C] or all of logits [R, vocab] (any float dtype), on their
    device; in C on the CPU, in Triton on a GPU but for typical_p, else in torch."""
    if is_supported(logits):
        return sample_rows(logits, choices, rows)
    if logits.is_cuda and not (choices["typical_p"] < 1).any():
        return _sample_on_gpu(logits, choices, rows)
    return sample_torch(logits if rows is None else logits[torch.from_numpy(rows).to(logits.device)], choices)


def _sample_on_gpu(logits: torch.Tensor, choices: Choices, rows: I64 | None) -> torch.Tensor:
    from pieray.kernels.sample_triton import sample_rows as draw

    device = logits.device
    columns = {name: torch.from_numpy(values.copy()).to(device) for name, values in draw_columns(choices).items()}
    tokens = torch.empty(len(choices), dtype=torch.int64, device=device)
    is_bad = torch.empty(len(choices), dtype=torch.int32, device=device)
    places = None if rows is None else torch.from_numpy(rows).to(device)
    draw(logits, DrawColumns(**columns), places, tokens, is_bad)
    return tokens


def sample_torch(logits: torch.Tensor, choices: Choices) -> torch.Tensor:
    """As `sample`, in torch on any device; also the reference of kernels/sample_cpu.c."""
    tokens = logits.argmax(-1)
    rows = np.flatnonzero(choices["temperature"] > 0)
    if len(rows):
        drawn = choices[rows]
        uniform = _column(uniforms(drawn["seed"], drawn["counter"]), logits)
        tokens[rows] = _draw(filtered(logits[rows], drawn), uniform)
    return tokens


def filtered(logits: torch.Tensor, choices: Choices) -> torch.Tensor:
    """What rows with temperature > 0 draw from: float32 [R, vocab], at most 0, -inf where a filter removed the token.

    Tokens that tie with the last one kept are kept, so that the result does not hang on the order of a sort.
    """
    shifted = logits.float() - logits.float().amax(-1, keepdim=True)  # a tiny temperature must not overflow
    scaled = shifted / _column(choices["temperature"], logits).float().clamp_min(1e-6)
    for name, threshold in (("top_k", _top_k), ("top_p", _top_p), ("min_p", _min_p)):
        rows = np.flatnonzero(choices[name] != OFF[name])
        if len(rows):
            limit = threshold(scaled[rows], choices[name][rows])
            scaled[rows] = scaled[rows].masked_fill(scaled[rows] < limit, -torch.inf)
    rows = np.flatnonzero(choices["typical_p"] != OFF["typical_p"])
    if len(rows):
        is_far = _is_untypical(scaled[rows], choices["typical_p"][rows])
        scaled[rows] = scaled[rows].masked_fill(is_far, -torch.inf)
    return scaled


def _top_k(scaled: torch.Tensor, given: I64) -> torch.Tensor:
    ranks = torch.from_numpy(np.minimum(given, scaled.shape[-1])).to(scaled.device)[:, None]
    return scaled.topk(int(ranks.max()), -1).values.gather(-1, ranks - 1)


def _top_p(scaled: torch.Tensor, given: F64) -> torch.Tensor:
    goal = _column(given, scaled) * scaled.double().exp().sum(-1, keepdim=True)
    for width in (NUCLEUS_GUESS, scaled.shape[-1]):
        values = scaled.topk(min(width, scaled.shape[-1]), -1).values
        weights = values.double().exp()
        num_kept = (weights.cumsum(-1) - weights < goal).sum(-1, keepdim=True).clamp_min(1)
        if int(num_kept.max()) < values.shape[-1]:
            break
    return values.gather(-1, num_kept - 1)


def _min_p(scaled: torch.Tensor, given: F64) -> torch.Tensor:
    return _column(given, scaled).log().float()  # the most likely token is at 0


def _is_untypical(scaled: torch.Tensor, given: F64) -> torch.Tensor:
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


def _column(values: F64, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)[:, None]


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
