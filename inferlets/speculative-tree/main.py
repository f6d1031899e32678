"""Speculate along several branches: what followed the last words at each earlier place, merged into one tree."""

from typing import Any

from inferlet import Sampler, forward, kv, model, queue, session
from inferlet import chat as templates


async def main(
    prompt: str = "Repeat: red blue red blue red blue",
    max_tokens: int = 64,
    branches: int = 4,
    depth: int = 6,
    ngram: int = 2,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = True,
) -> dict[str, Any]:
    """The text that decoding without drafts gives for the same seed; `num_passes` tells what the drafts saved."""
    text = templates.render([{"role": "user", "content": prompt}]) if chat else prompt
    tokens = model.tokenize(text)
    stops, first, end = model.stop_tokens(), len(tokens), len(tokens) + max_tokens
    pages = kv.alloc(-(-(end + branches * depth) // kv.page_size()))
    line, stream, pieces = queue.create(), model.TextStream(), []
    kv_len = num_passes = num_drafted = num_accepted = 0
    with Sampler(temperature, seed=seed).handle() as sampler:
        while len(tokens) < end and not (len(tokens) > first and tokens[-1] in stops):
            drafts, parents = tree(tokens, ngram, branches, depth)
            said = await forward.verify(line, pages, kv_len, tokens[kv_len:], drafts, parents, sampler)
            kv_len = len(tokens) + len(said) - 1
            num_passes += 1
            num_drafted += len(drafts)
            num_accepted += len(said) - 1
            said = until_stop(said, stops)[: end - len(tokens)]
            tokens += said
            pieces.append(stream.push([token for token in said if token not in stops]))
            session.send(pieces[-1])
    return {
        "text": "".join(pieces),
        "num_tokens": len(tokens) - first,
        "num_passes": num_passes,
        "num_drafted": num_drafted,
        "num_accepted": num_accepted,
    }


def tree(tokens: list[int], ngram: int, branches: int, depth: int) -> tuple[list[int], list[int]]:
    """Drafts and their parents, as `forward.verify` takes them: the latest occurrences first."""
    drafts: list[int] = []
    parents: list[int] = []
    node_of: dict[tuple[int, int], int] = {}  # parent, token: 1 + draft
    tail, num_left = tokens[-ngram:], branches
    for start in range(len(tokens) - ngram - 1, -1, -1):
        if not num_left:
            break
        if tokens[start : start + ngram] != tail:
            continue
        num_left, node = num_left - 1, 0
        for token in tokens[start + ngram : start + ngram + depth]:
            if (node, token) not in node_of:
                drafts.append(token)
                parents.append(node)
                node_of[node, token] = len(drafts)
            node = node_of[node, token]
    return drafts, parents


def until_stop(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """`tokens` up to the first stop token, that included."""
    for index, token in enumerate(tokens):
        if token in stops:
            return tokens[: index + 1]
    return tokens
