"""Random draws that a seed repeats, within what the limits leave."""

import asyncio
from typing import Any

from inferlet import Context, kv, runtime


async def main(
    prompt: str = "the", n: int = 8, seed: int | None = None, max_tokens: int = 16, temperature: float = 1.0
) -> dict[str, Any]:
    """Draw `n` texts, as many at a time as have pages; `seed` repeats all that is random in this program."""
    if seed is not None:
        runtime.seed(seed)
    async with Context(prompt) as ctx:
        await ctx.flush()
        width = room(-(-(ctx.position + max_tokens) // kv.page_size()), n)
        texts: list[str] = []
        while len(texts) < n:
            forks = [ctx.fork() for _ in range(min(width, n - len(texts)))]
            texts += await asyncio.gather(*(draw(fork, max_tokens, temperature) for fork in forks))
        pick = texts[int(runtime.random() * n)]
        return {"texts": texts, "pick": pick, "width": width, "used": runtime.limits()["used"]}


async def draw(ctx: Context, max_tokens: int, temperature: float) -> str:
    async with ctx:
        return await ctx.collect_text(max_tokens, temperature=temperature)


def room(num_pages: int, most: int) -> int:
    """How many texts of `num_pages` pages this inferlet's limit leaves room for: at least one."""
    told = runtime.limits()
    left = int(told["limits"]["pages"]) - int(told["used"]["pages"])
    return max(1, min(most, left // num_pages))
