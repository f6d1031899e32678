"""Monte Carlo tree search over tokens: roll out from promising prefixes, guided by the model's prior and a reward."""

import math
from dataclasses import dataclass, field
from typing import Any

from inferlet import Context, model


@dataclass
class Node:
    """A prefix: its context, how probable the model finds its last token, visits and rewards below it."""

    ctx: Context
    prior: float = 1.0
    visits: int = 0
    total: float = 0.0
    children: list["Node"] = field(default_factory=list)


async def main(
    prompt: str = "the small cat",
    wanted: list[str] | tuple[str, ...] = ("river", "doctor", "happy"),
    rollouts: int = 96,
    width: int = 12,
    c: float = 0.1,
    max_tokens: int = 24,
    temperature: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """The rollout with the highest reward: the share of the words `wanted` that a finished sentence has."""
    async with Context(prompt) as ctx:
        await ctx.flush()
        root, best = Node(ctx), ("", -1.0)
        for number in range(rollouts):
            path = [root]
            while path[-1].children:  # select
                path.append(max(path[-1].children, key=lambda child: puct(child, path[-1].visits, c)))
            leaf = path[-1]
            if leaf.visits and leaf.ctx.position - ctx.position < max_tokens:  # expand
                leaf.children = await expand(leaf, width)
                path.append(leaf.children[0])
            text, gained = await rollout(path[-1], prompt, wanted, max_tokens, temperature, seed + number)
            best = max(best, (text, gained), key=lambda one: one[1])
            for node in path:
                node.visits += 1
                node.total += gained
        return {"text": best[0], "reward": best[1], "rollouts": root.visits, "mean_reward": root.total / root.visits}


def puct(child: Node, visits: int, c: float) -> float:
    """What AlphaZero maximises: the mean reward, and a bonus for what the model likes and the search has not tried."""
    mean = child.total / child.visits if child.visits else 0.0
    return mean + c * child.prior * math.sqrt(visits) / (1 + child.visits)


async def expand(node: Node, width: int) -> list[Node]:
    found = []
    for token, probability in await node.ctx.distribution(width):
        if token not in model.stop_tokens() or not found:
            child = node.ctx.fork()
            found.append(Node(child.append([token]), probability))
    return found


async def rollout(
    node: Node, prompt: str, wanted: Any, max_tokens: int, temperature: float, seed: int
) -> tuple[str, float]:
    """A sentence from this prefix on, and its reward."""
    async with node.ctx.fork() as ctx:
        drawn = ctx.generate(max_tokens, temperature=temperature, seed=seed)
        await drawn
        text = model.detokenize(ctx.tokens, skip_special=True)
        is_whole = drawn.finish_reason == "stop" and text.startswith(prompt) and text.count(".") == 1
        words = text.rstrip(".").split()
        return text, sum(word in words for word in wanted) / len(wanted) if is_whole else 0.0
