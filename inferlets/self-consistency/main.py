"""Think n times, from one shared prompt, and give the answer that most of the thoughts end with."""

import asyncio
import re
from collections import Counter
from typing import Any

from inferlet import Context


async def main(
    question: str,
    n: int = 5,
    max_tokens: int = 96,
    temperature: float = 0.7,
    seed: int = 0,
    answer: str = r"answer (\S+)",
) -> dict[str, Any]:
    """`answer` is the regular expression whose first group is a thought's answer; the last match counts."""
    async with Context() as ctx:
        ctx.user(question).cue()
        await ctx.flush()
        thoughts = await asyncio.gather(*(think(ctx.fork(), max_tokens, temperature, seed + i) for i in range(n)))
    votes = Counter(found[-1] for found in (re.findall(answer, thought) for thought in thoughts) if found)
    if not votes:
        return {"answer": None, "votes": {}, "thoughts": thoughts}
    return {"answer": votes.most_common(1)[0][0], "votes": dict(votes), "thoughts": thoughts}


async def think(ctx: Context, max_tokens: int, temperature: float, seed: int) -> str:
    async with ctx:
        return await ctx.collect_text(max_tokens, temperature=temperature, seed=seed)
