"""Minimum Bayes risk: of several draws, the one that agrees most with all the others."""

from collections import Counter
from itertools import pairwise
from typing import Any

from inferlet import Context


async def main(
    prompt: str = "Repeat: veki red 42 blue",
    n: int = 8,
    max_tokens: int = 48,
    temperature: float = 1.2,
    seed: int = 0,
    chat: bool = True,
) -> dict[str, Any]:
    """The draw of the highest expected utility, the mean F1 of its words and those of each other draw."""
    async with Context.of(prompt, chat=chat) as ctx:
        texts = [drawn.text for drawn in await ctx.generate_many(n, max_tokens, temperature=temperature, seed=seed)]
    utilities = [
        sum(f1(text, other) for j, other in enumerate(texts) if i != j) / max(n - 1, 1) for i, text in enumerate(texts)
    ]
    best = max(range(n), key=utilities.__getitem__)
    return {"text": texts[best], "utility": utilities[best], "texts": texts, "utilities": utilities}


def f1(one: str, other: str) -> float:
    """Twice the words in common over the words of both, runs of words counted by bigrams too."""
    left, right = grams(one), grams(other)
    return 2 * (left & right).total() / ((left.total() + right.total()) or 1)


def grams(text: str) -> Counter[str]:
    words = text.split()
    return Counter(words) + Counter(map(" ".join, pairwise(words)))
