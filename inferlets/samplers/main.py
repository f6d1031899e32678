"""Samplers of the literature, a function each: what may be drawn, from the logits and the tokens before."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import pstdev
from typing import Any

from inferlet import Context, InvalidRequest, sampling, session
from inferlet.sampling import entropy, keep, softmax

Weights = list[float]


@dataclass
class Past:
    """What a method may know besides the logits."""

    random: Callable[[], float]
    tokens: list[int] = field(default_factory=list)
    weights: Weights = field(default_factory=list)
    """What the last token was drawn from."""
    mu: float = 0.0
    """Mirostat's threshold, in bits."""


def typical(logits: Weights, _: Past, p: float = 0.9) -> Weights:
    """Those whose surprise is nearest to the entropy, until they reach `p` (Meister et al. 2022)."""
    likely = softmax(logits)
    nats = entropy(likely)
    kept, total = [], 0.0
    for token in sorted((i for i, q in enumerate(likely) if q), key=lambda i: abs(-math.log(likely[i]) - nats)):
        kept.append(token)
        total += likely[token]
        if total >= p:
            break
    return keep(likely, kept)


def epsilon(logits: Weights, _: Past, least: float = 0.02) -> Weights:
    """Those of at least this probability, or the best (Hewitt et al. 2022)."""
    likely = softmax(logits)
    return keep(likely, [i for i, q in enumerate(likely) if q >= least] or [sampling.argmax(likely)])


def eta(logits: Weights, past: Past, least: float = 0.02) -> Weights:
    """The same, with a threshold that falls where the model is unsure (Hewitt et al. 2022)."""
    return epsilon(logits, past, min(least, math.sqrt(least) * math.exp(-entropy(softmax(logits)))))


def top_a(logits: Weights, _: Past, a: float = 0.2) -> Weights:
    """Those of at least `a` times the square of the best's probability (BlinkDL 2022)."""
    likely = softmax(logits)
    return keep(likely, [i for i, q in enumerate(likely) if q >= a * max(likely) ** 2])


def top_n_sigma(logits: Weights, _: Past, n: float = 1.0) -> Weights:
    """Those whose logit is at most `n` standard deviations below the best's (Tang et al. 2024)."""
    least = max(logits) - n * pstdev(logits)
    return keep(softmax(logits), [i for i, logit in enumerate(logits) if logit >= least])


def tail_free(logits: Weights, _: Past, z: float = 0.95) -> Weights:
    """The head, before the curvature of the sorted probabilities has spent `z` of itself (Phénix and Egan 2019)."""
    likely = softmax(logits)
    order = sorted(range(len(likely)), key=lambda i: -likely[i])
    slopes = [likely[a] - likely[b] for a, b in pairwise(order)]
    bends = [abs(a - b) for a, b in pairwise(slopes)]
    spent, count = 0.0, 0
    while count < len(bends) and spent <= z * sum(bends):
        spent += bends[count]
        count += 1
    return keep(likely, order[: max(count, 1)])


def xtc(logits: Weights, past: Past, threshold: float = 0.1, probability: float = 0.5) -> Weights:
    """Exclude top choices: with this probability, all above the threshold but the least likely (Weidmann 2024)."""
    likely = softmax(logits)
    top = sorted((i for i, q in enumerate(likely) if q >= threshold), key=lambda i: likely[i])[1:]
    if not top or past.random() >= probability:
        return likely
    return keep(likely, [i for i in range(len(likely)) if i not in top])


def dry(logits: Weights, past: Past, multiplier: float = 0.8, base: float = 1.75, allowed_length: int = 2) -> Weights:
    """Do not repeat: what would go on a repetition of n tokens loses `multiplier * base ** (n - allowed_length)`
    (Weidmann 2024)."""
    tokens, lengths = past.tokens, {}
    for end in range(1, len(tokens)):
        length = 0
        while length < end and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        lengths[tokens[end]] = max(length, lengths.get(tokens[end], 0))
    punished = list(logits)
    for token, length in lengths.items():
        if length >= allowed_length:
            punished[token] -= multiplier * base ** (length - allowed_length)
    return softmax(punished)


def repetition(logits: Weights, past: Past, penalty: float = 1.2) -> Weights:
    """Tokens that were there: their logits over the penalty, or times it below 0 (Keskar et al. 2019)."""
    seen = set(past.tokens)
    return softmax([(x / penalty if x > 0 else x * penalty) if i in seen else x for i, x in enumerate(logits)])


def entropy_temperature(logits: Weights, _: Past, top: float = 1.2, theta: float = 0.3) -> Weights:
    """Temperature `top * 0.8 ** (theta / entropy)`: low where the model is sure (Zhang et al. 2024, EDT)."""
    nats = entropy(softmax(logits))
    return softmax(logits, max(top * 0.8 ** (theta / max(nats, 1e-3)), 1e-2))


def mirostat(logits: Weights, past: Past, tau: float = 3.0, rate: float = 0.2) -> Weights:
    """Those whose surprise in bits is at most mu, which steers that of the text to `tau` (Basu et al. 2020, v2)."""
    if past.weights:
        past.mu -= rate * (-math.log2(past.weights[past.tokens[-1]]) - tau)
    else:
        past.mu = 2 * tau
    likely = softmax(logits)
    kept = [i for i, q in enumerate(likely) if q and -math.log2(q) <= past.mu] or [sampling.argmax(likely)]
    return keep(likely, kept)


METHODS: dict[str, Callable[..., Weights]] = {
    method.__name__.replace("_", "-"): method
    for method in (
        typical,
        epsilon,
        eta,
        top_a,
        top_n_sigma,
        tail_free,
        xtc,
        dry,
        repetition,
        entropy_temperature,
        mirostat,
    )
}


async def main(
    prompt: str = "the",
    method: str = "typical",
    options: dict[str, float] | None = None,
    max_tokens: int = 32,
    temperature: float = 1.0,
    seed: int | None = 0,
    trace: bool = False,
    ignore_eos: bool = False,
) -> dict[str, Any]:
    """`options`: the parameters of the method; `temperature` comes first.  `trace`: what could be drawn, by token."""
    if method not in METHODS:
        raise InvalidRequest(f"method is one of {', '.join(METHODS)}; given {method!r}")
    past = Past(sampling.randoms(seed))
    steps: list[dict[int, float]] = []

    def choose(logits: Weights) -> int:
        past.tokens = ctx.tokens
        past.weights = METHODS[method]([logit / temperature for logit in logits], past, **(options or {}))
        if trace:
            steps.append({token: weight for token, weight in enumerate(past.weights) if weight})
        return sampling.draw(past.weights, past.random)

    async with Context(prompt) as ctx:
        generation = ctx.generate(max_tokens, choose=choose, stop_tokens=() if ignore_eos else None)
        text = await session.stream(generation)
        told = {"tokens": ctx.tokens, "steps": steps} if trace else {}
        return {"text": text, "num_tokens": generation.num_tokens, **told}
