"""SynthID-Text: each token wins a tournament whose rounds are judged by secret coins."""

import math
from typing import Any

from inferlet import Context, model, sampling, session


async def main(
    prompt: str = "the",
    detect: str = "",
    max_tokens: int = 200,
    key: int = 15485863,
    width: int = 3,
    rounds: int = 30,
    temperature: float = 1.3,
    seed: int | None = 0,
    ignore_eos: bool = True,
) -> dict[str, Any]:
    """Generate with the mark, or look for it in the text `detect`.  `width` tokens before a token toss its coins."""
    if detect:
        return score(model.tokenize(detect), key, width, rounds)
    random, used = sampling.randoms(seed), set()

    def choose(logits: list[float]) -> int:
        before, chances = tuple(ctx.tokens[-width:]), sampling.softmax(logits, temperature)
        likely = {token: p for token, p in enumerate(chances) if p > 1e-5}
        words = coins(before, key)
        for number in range(0 if before in used else rounds):  # no context is marked twice
            tossed = {token: words[token] >> number & 1 for token in likely}
            heads = sum(p for token, p in likely.items() if tossed[token])
            # of two that are drawn the one with heads wins, of equals either: what the winner is distributed as
            likely = {token: p * (1 + tossed[token] - heads) for token, p in likely.items()}
        used.add(before)
        return list(likely)[sampling.draw(list(likely.values()), random)]

    async with Context(prompt) as ctx:
        generation = ctx.generate(max_tokens, choose=choose, stop_tokens=() if ignore_eos else None)
        text = await session.stream(generation)
    return {"text": text, **score(model.tokenize(text), key, width, rounds)}


def coins(before: tuple[int, ...], key: int) -> list[int]:
    """For each token of the vocabulary a word whose bits are its coins, one a round."""
    return [int(value * (1 << 32)) for value in sampling.noise(model.info()["vocab_size"], key, *before)]


def score(tokens: list[int], key: int, width: int, rounds: int) -> dict[str, Any]:
    """By chance a coin is heads half the time: how many deviations more it is.  Each n-gram counts once.

    The first rounds decide most, and weigh most: from 10 down to 1, as in the paper.
    """
    grams = {tuple(tokens[i - width : i + 1]) for i in range(width, len(tokens))}
    words = [coins(gram[:-1], key)[gram[-1]] for gram in grams]
    weights = [10 - 9 * number / max(rounds - 1, 1) for number in range(rounds)]
    excess = sum(weight * ((word >> number & 1) - 0.5) for word in words for number, weight in enumerate(weights))
    deviation = math.sqrt(len(words) * sum(weight**2 for weight in weights) / 4) or 1.0
    return {"z": excess / deviation, "mean": 0.5 + excess / (len(words) * sum(weights) or 1), "num_scored": len(words)}
