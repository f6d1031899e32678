"""A watermark that changes no probability: the randomness of each draw follows from a key and the tokens before it."""

import math
from typing import Any

from inferlet import Context, model, sampling, session


async def main(
    prompt: str = "the",
    detect: str = "",
    max_tokens: int = 160,
    key: int = 15485863,
    width: int = 3,
    temperature: float = 1.3,
    seed: int | None = 0,
    ignore_eos: bool = True,
) -> dict[str, Any]:
    """Generate with the mark, or look for it in the text `detect`.  `width` tokens before a token seed its draw."""
    if detect:
        return score(model.tokenize(detect), key, width)

    random, used = sampling.randoms(seed), set()

    def choose(logits: list[float]) -> int:
        before, likely = tuple(ctx.tokens[-width:]), sampling.softmax(logits, temperature)
        if before in used:  # the same numbers again would say the same again
            return sampling.draw(likely, random)
        used.add(before)
        chance = numbers(before, key)
        # r ** (1 / p) is greatest for token x with probability p(x): the Gumbel trick
        pairs = zip(chance, likely, strict=True)
        return sampling.argmax([math.log(r or 1e-300) / p if p > 0 else -math.inf for r, p in pairs])

    async with Context(prompt) as ctx:
        generation = ctx.generate(max_tokens, choose=choose, stop_tokens=() if ignore_eos else None)
        text = await session.stream(generation)
    return {"text": text, **score(model.tokenize(text), key, width)}


def numbers(before: tuple[int, ...], key: int) -> list[float]:
    """A number in [0, 1) for each token of the vocabulary."""
    return sampling.noise(model.info()["vocab_size"], key, *before)


def score(tokens: list[int], key: int, width: int) -> dict[str, Any]:
    """The sum of -log(1 - r) is 1 a token by chance, with deviation 1: how far above it is.  An n-gram counts once."""
    grams = {tuple(tokens[i - width : i + 1]) for i in range(width, len(tokens))}
    total = sum(-math.log(1 - numbers(gram[:-1], key)[gram[-1]]) for gram in grams)
    return {"z": (total - len(grams)) / math.sqrt(len(grams) or 1), "num_scored": len(grams)}
