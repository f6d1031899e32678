"""SynthID-Text: each token wins a tournament whose rounds are judged by secret coins."""

import math
from typing import Any

from inferlet import Context, model, sampling, session


async def main(
    prompt: str = "the",
    detect: str = "",
    max_tokens: int = 160,
    key: int = 15485863,
    width: int = 3,
    rounds: int = 16,
    temperature: float = 1.3,
    seed: int | None = 0,
    ignore_eos: bool = True,
) -> dict[str, Any]:
    """Generate with the mark, or look for it in the text `detect`.  `width` tokens before a token toss its coins."""
    if detect:
        return score(model.tokenize(detect), key, width, rounds)
    random, used = sampling.randoms(seed), set()

    def choose(logits: list[float]) -> int:
        chances = dict(enumerate(sampling.softmax(logits, temperature)))
        likely = {token: p for token, p in chances.items() if p > 1e-5}
        before = tuple(ctx.tokens[-width:])
        for coins in [] if before in used else tosses(before, key, rounds):  # no context is marked twice
            heads = sum(p for token, p in likely.items() if coins[token])
            # of two that are drawn the one with heads wins, of equals either: what the winner is distributed as
            likely = {token: p * (1 + coins[token] - heads) for token, p in likely.items()}
        used.add(before)
        return list(likely)[sampling.draw(list(likely.values()), random)]

    async with Context(prompt) as ctx:
        generation = ctx.generate(max_tokens, choose=choose, stop_tokens=() if ignore_eos else None)
        text = await session.stream(generation)
    return {"text": text, **score(model.tokenize(text), key, width, rounds)}


def tosses(before: tuple[int, ...], key: int, rounds: int) -> list[list[int]]:
    """A coin for each token of the vocabulary, in each round."""
    bits = [int(value * (1 << rounds)) for value in sampling.noise(model.info()["vocab_size"], key, *before)]
    return [[word >> number & 1 for word in bits] for number in range(rounds)]


def score(tokens: list[int], key: int, width: int, rounds: int) -> dict[str, Any]:
    """The mean of the coins is a half by chance: how many deviations above it is.  Each n-gram counts once."""
    grams = {tuple(tokens[i - width : i + 1]) for i in range(width, len(tokens))}
    heads = sum(coins[gram[-1]] for gram in grams for coins in tosses(gram[:-1], key, rounds))
    count = len(grams) * rounds or 1
    return {"z": (heads - count / 2) / math.sqrt(count / 4), "mean": heads / count, "num_scored": len(grams)}
