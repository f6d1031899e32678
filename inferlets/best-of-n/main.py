"""Draw n continuations of one prompt, whose KV they share, and keep the one that the model finds most likely."""

from statistics import mean
from typing import Any

from inferlet import Context


async def main(
    prompt: str = "25+45=? Think step by step.",
    n: int = 4,
    max_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    chat: bool = True,
) -> dict[str, Any]:
    """The best by mean log-probability of its tokens; `seed` + i draws continuation i."""
    async with Context.of(prompt, chat=chat) as ctx:
        drawn = await ctx.generate_many(n, max_tokens, temperature=temperature, seed=seed, logprobs=True)
    candidates = [{"text": one.text, "score": mean([*one.logprobs, one.stop_logprob])} for one in drawn]
    best = max(candidates, key=lambda candidate: candidate["score"])
    return {"text": best["text"], "score": best["score"], "candidates": candidates}
