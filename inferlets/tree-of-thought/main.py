"""Tree of thoughts: several next thoughts are drawn behind each branch, and the best branches go on."""

from dataclasses import dataclass
from typing import Any

from inferlet import Context, gather


@dataclass
class Branch:
    """Thoughts so far, and how likely the model finds them."""

    ctx: Context
    text: str = ""
    score: float = 0.0
    is_done: bool = False


async def main(
    question: str = "537+286=? Think step by step.",
    width: int = 2,
    num_thoughts: int = 4,
    max_steps: int = 6,
    max_tokens: int = 16,
    temperature: float = 1.5,
    seed: int = 0,
    separator: str = ";",
) -> dict[str, Any]:
    """Breadth first: `num_thoughts` behind each branch, the `width` best go on; a thought ends at `separator`."""
    branches, num_drawn = [Branch(Context.of(question, chat=True))], 0
    for _ in range(max_steps):
        if all(branch.is_done for branch in branches):
            break
        await gather(*(branch.ctx.flush() for branch in branches))
        seeds = range(seed + num_drawn, seed + num_drawn + num_thoughts * len(branches), num_thoughts)
        grown = [
            think(branch, max_tokens, temperature, first + i, separator)
            for branch, first in zip(branches, seeds, strict=True)
            for i in range(1 if branch.is_done else num_thoughts)
        ]
        num_drawn += len(grown)
        unlike = {branch.text: branch for branch in await gather(*grown)}
        for branch in branches:
            branch.ctx.close()
        branches = sorted(unlike.values(), key=lambda branch: -branch.score)[:width]
    return {
        "answer": branches[0].text.rpartition("answer")[2].strip(),
        "branches": [{"text": branch.text, "score": branch.score} for branch in branches],
        "num_thoughts": num_drawn,
    }


async def think(branch: Branch, max_tokens: int, temperature: float, seed: int, separator: str) -> Branch:
    """One more thought behind a branch, whose KV it shares.  Its value: the log-probability that the model gives it."""
    ctx = branch.ctx.fork()
    if branch.is_done:
        return Branch(ctx, branch.text, branch.score, is_done=True)
    thought = ctx.generate(max_tokens, temperature=temperature, seed=seed, stop=separator, logprobs=True)
    text = branch.text + await thought
    is_done = thought.stopped_by != separator
    return Branch(
        ctx, text + ("" if is_done else separator), branch.score + sum(thought.logprobs) + thought.stop_logprob, is_done
    )
