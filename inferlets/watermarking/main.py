"""A watermark: after each token a secret half of the vocabulary is green and gets a bonus; a detector counts green."""

import math
from itertools import pairwise
from typing import Any

from inferlet import Context, model, sampling, session


async def main(
    prompt: str = "the",
    detect: str = "",
    max_tokens: int = 160,
    gamma: float = 0.5,
    delta: float = 4.0,
    key: int = 15485863,
    temperature: float = 1.3,
    seed: int | None = 0,
    ignore_eos: bool = True,
) -> dict[str, Any]:
    """Generate with the mark, or look for it in the text `detect`.  `gamma`: the green share, `delta`: the bonus."""
    if detect:
        return score(model.tokenize(detect), gamma, key)
    random = sampling.randoms(seed)

    def choose(logits: list[float]) -> int:
        marks = green(ctx.tokens[-1], gamma, key)
        marked = [logit + delta * is_green for logit, is_green in zip(logits, marks, strict=True)]
        return sampling.draw(sampling.softmax(marked, temperature), random)

    async with Context(prompt) as ctx:
        generation = ctx.generate(max_tokens, choose=choose, stop_tokens=() if ignore_eos else None)
        text = await session.stream(generation)
    return {"text": text, **score(model.tokenize(text), gamma, key)}


def green(previous: int, gamma: float, key: int) -> list[bool]:
    """Which tokens are green behind `previous`."""
    return [value < gamma for value in sampling.noise(model.info()["vocab_size"], key, previous)]


def score(tokens: list[int], gamma: float, key: int) -> dict[str, Any]:
    """How many standard deviations more green tokens there are than chance has; each pair of tokens counts once."""
    pairs = set(pairwise(tokens))
    num_green = sum(green(previous, gamma, key)[token] for previous, token in pairs)
    deviation = math.sqrt(len(pairs) * gamma * (1 - gamma)) or 1.0
    return {"z": (num_green - gamma * len(pairs)) / deviation, "num_green": num_green, "num_scored": len(pairs)}
