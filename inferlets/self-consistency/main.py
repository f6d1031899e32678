"""Think n times, from one shared prompt, and give the answer that most of the thoughts end with."""

import re
from collections import Counter
from typing import Any

from inferlet import Context


async def main(
    question: str = "25+45=? Think step by step.",
    n: int = 5,
    max_tokens: int = 96,
    temperature: float = 0.7,
    seed: int = 0,
    answer: str = r"answer (\S+)",
) -> dict[str, Any]:
    """`answer` is the regular expression whose first group is a thought's answer; the last match counts."""
    async with Context.of(question, chat=True) as ctx:
        drawn = await ctx.generate_many(n, max_tokens, temperature=temperature, seed=seed)
    thoughts = [thought.text for thought in drawn]
    votes = Counter(found[-1] for found in (re.findall(answer, thought) for thought in thoughts) if found)
    if not votes:
        return {"answer": None, "votes": {}, "thoughts": thoughts}
    return {"answer": votes.most_common(1)[0][0], "votes": dict(votes), "thoughts": thoughts}
