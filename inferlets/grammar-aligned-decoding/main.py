"""ASAp: sample what the model says given that it is grammatical, by learning how grammatical each prefix ends."""

from dataclasses import dataclass, field
from typing import Any

from inferlet import Context, Grammar, model, sampling


@dataclass
class Node:
    """A prefix, whose KV its context shares with those before it.

    `mass`: how likely what follows is to be grammatical, as far as samples tell; 1 at first.
    """

    ctx: Context
    likely: dict[int, float] = field(default_factory=dict)  # of each token that the grammar allows
    children: dict[int, "Node"] = field(default_factory=dict)
    mass: float = 1.0

    def weights(self) -> dict[int, float]:
        return {
            token: p * self.children[token].mass if token in self.children else p for token, p in self.likely.items()
        }


async def main(
    prompt: str = "12+7=",
    regex: str = "1[0-4]|[2-5][0-9]",
    n: int = 64,
    max_tokens: int = 32,
    temperature: float = 1.0,
    seed: int | None = 0,
) -> dict[str, Any]:
    """`n` samples.  Of each text: how often it came, and its probability under ASAp now and under plain masking."""
    random, stops = sampling.randoms(seed), model.stop_tokens()
    start, root = await Grammar.regex(regex), Node(Context(prompt))
    counts: dict[tuple[int, ...], int] = {}
    num_passes = 0
    for _ in range(n):
        path, said = [root], []
        with start.fork() as matcher:
            while len(said) < max_tokens and not (said and said[-1] in stops):
                node = path[-1]
                if not node.likely:  # nobody has been here: the only time that the model is asked
                    chances, mask = sampling.softmax(await node.ctx.logits(), temperature), matcher.mask()
                    node.likely = {i: p for i, p in enumerate(chances) if mask[i >> 5] >> (i & 31) & 1}
                    num_passes += 1
                weights = node.weights()
                token = list(weights)[sampling.draw(list(weights.values()), random)]
                matcher.accept([token])
                if token not in node.children:
                    node.children[token] = Node(node.ctx.fork().append([token]))
                path.append(node.children[token])
                said.append(token)
        for node in reversed(path[:-1]):  # what has been learned of its end
            node.mass = sum(node.weights().values())
        counts[tuple(said)] = counts.get(tuple(said), 0) + 1
    rows = [
        {"text": model.detokenize([t for t in said if t not in stops]), "count": count, **told(root, said)}
        for said, count in counts.items()
    ]
    return {"samples": sorted(rows, key=lambda row: -row["count"]), "num_passes": num_passes}


def told(root: Node, said: tuple[int, ...]) -> dict[str, float]:
    """The probability of a text under ASAp as it is now, and under masking alone."""
    node, aligned, masked = root, 1.0, 1.0
    for token in said:
        weights = node.weights()
        aligned *= weights[token] / sum(weights.values())
        masked *= node.likely[token] / sum(node.likely.values())
        node = node.children[token]
    return {"aligned": aligned, "masked": masked}
