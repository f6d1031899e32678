"""Graph of thoughts: parts are sorted several times each, the best of each are merged, several times too."""

from collections import Counter
from itertools import pairwise
from typing import Any

from inferlet import Context, gather


async def main(
    numbers: str = "3 1 9 0 5 5 2 8 7 4 6 1 0 9 3 2",
    part: int = 8,
    num_tries: int = 3,
    temperature: float = 0.7,
    max_tokens: int = 48,
    seed: int = 0,
) -> dict[str, Any]:
    """Sort digits: split into parts of `part`, sort each, and merge two by two.  The best try of each is kept."""
    values = numbers.split()
    parts = [values[start : start + part] for start in range(0, len(values), part)]
    options: dict[str, Any] = {"n": num_tries, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    level = list(await gather(*(best(f"Sort: {' '.join(one)}", one, options) for one in parts)))
    num_vertices = len(level)
    while len(level) > 1:
        pairs, rest = list(zip(level[::2], level[1::2], strict=False)), level[len(level) & ~1 :]
        questions = [(f"Merge: {' '.join(one)} | {' '.join(other)}", one + other) for one, other in pairs]
        level = [*await gather(*(best(question, held, options) for question, held in questions)), *rest]
        num_vertices += len(pairs)
    return {"sorted": " ".join(level[0]), "num_errors": errors(level[0], values), "num_vertices": num_vertices}


async def best(question: str, held: list[str], options: dict[str, Any]) -> list[str]:
    """Of several tries from one prompt, whose KV they share, that with the fewest errors."""
    async with Context.of(question, chat=True) as ctx:
        tries = [drawn.text.split() for drawn in await ctx.generate_many(**options)]
    return min(tries, key=lambda said: errors(said, held))


def errors(said: list[str], held: list[str]) -> int:
    """Neighbours in the wrong order, and numbers too many or missing: the score of the paper, without a model."""
    wrong = sum(one > other for one, other in pairwise(said))
    counts, wanted = Counter(said), Counter(held)
    return wrong + (counts - wanted).total() + (wanted - counts).total()
