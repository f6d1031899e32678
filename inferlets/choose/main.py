"""Choose among answers by how probable the model finds each, as SGLang's `select` does."""

import asyncio
from collections.abc import Sequence
from typing import Any

from inferlet import Context, InvalidRequest


async def main(
    prompt: str = "12+7=", choices: Sequence[str] = ("18", "19", "20"), by: str = "mean", chat: bool = False
) -> dict[str, Any]:
    """`by`: "mean" log-probability of a choice's tokens, or their "sum"."""
    if by not in ("mean", "sum") or not choices or not all(choices):
        raise InvalidRequest(f'`by` is "mean" or "sum" and no choice is empty; given {by!r}, {choices!r}')
    async with Context.of(prompt, chat=chat) as ctx:
        await ctx.flush()
        scores = await asyncio.gather(*(score(ctx.fork(), choice, by) for choice in choices))
    best = max(range(len(choices)), key=scores.__getitem__)
    return {"choice": choices[best], "index": best, "scores": scores}


async def score(ctx: Context, choice: str, by: str) -> float:
    async with ctx:
        values = await ctx.logprobs(choice)
    return sum(values) / (len(values) if by == "mean" else 1)
