"""Draw n continuations of one prompt, whose KV they share, and keep the one that the model finds most likely."""

import asyncio
from typing import Any

from inferlet import Context, Generation


async def main(
    prompt: str, n: int = 4, max_tokens: int = 64, temperature: float = 0.8, seed: int = 0, chat: bool = False
) -> dict[str, Any]:
    """The best by mean log-probability of its tokens; `seed` + i draws continuation i."""
    async with Context() as ctx:
        if chat:
            ctx.user(prompt).cue()
        else:
            ctx.append(prompt)
        await ctx.flush()
        drawn = await asyncio.gather(*(draw(ctx.fork(), max_tokens, temperature, seed + i) for i in range(n)))
    candidates = [{"text": generation.text, "score": mean(generation.logprobs)} for generation in drawn]
    best = max(candidates, key=lambda candidate: candidate["score"])
    return {"text": best["text"], "score": best["score"], "candidates": candidates}


async def draw(ctx: Context, max_tokens: int, temperature: float, seed: int) -> Generation:
    async with ctx:
        generation = ctx.generate(max_tokens, temperature=temperature, seed=seed, logprobs=True)
        await generation
        return generation


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else -1e9
