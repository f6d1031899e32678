"""What `pieray serve` runs for a request to /v1/embeddings: the vector of each text, as the model makes one."""

import math
from typing import Any

from inferlet import InvalidRequest, forward, kv, model, queue
from inferlet.tickets import Ticket


async def main(inputs: list[str | list[int]], truncate_prompt_tokens: int | None = None) -> dict[str, Any]:
    """One vector per input, a text or its token ids.  All run in one batch."""
    pooling = model.info()["pooling"]
    if not pooling["kind"]:
        raise InvalidRequest(f"this model's vectors are not served: {pooling['why']}")
    lines = [tokens_of(one, at, truncate_prompt_tokens) for at, one in enumerate(inputs)]
    line = queue.create()
    asked = [states(line, tokens, pooling["kind"]) for tokens in lines]  # all before any is awaited: they share steps
    vectors = [mean([await state for state in rows]) for rows in asked]
    vectors = [unit(one) for one in vectors] if pooling["is_normalized"] else vectors
    return {"vectors": vectors, "num_tokens": sum(map(len, lines))}


def tokens_of(text: str | list[int], at: int, truncate: int | None) -> list[int]:
    """Its tokens, and around a text what the tokenizer puts there."""
    most, end = model.info()["max_context"], []
    tokens = text
    if isinstance(text, str):
        tokens, bos, end = model.tokenize(text), model.info()["bos_tokens"], model.info()["end_tokens"]
        tokens = tokens if tokens[: len(bos)] == bos else [*bos, *tokens]
        tokens = tokens if not end or tokens[-len(end) :] == end else [*tokens, *end]
    if truncate is not None and len(tokens) > (limit := most if truncate == -1 else truncate):
        tokens = [*tokens[: max(0, limit - len(end))], *end]
    if not 0 < len(tokens) <= most:
        raise InvalidRequest(f"an input has from 1 to {most} tokens, the model's context; input {at} has {len(tokens)}")
    return tokens


def states(line: int, tokens: list[int], kind: str) -> list[Ticket[list[float]]]:
    pages = kv.alloc(-(-len(tokens) // kv.page_size()))
    run = forward.forward(line, pages, 0, tokens)
    kv.free(pages)  # the pass keeps them until it has run
    rows = {"last": [-1], "first": [0], "mean": range(len(tokens))}[kind]
    return [run.hidden(row) for row in rows]


def mean(rows: list[list[float]]) -> list[float]:
    return rows[0] if len(rows) == 1 else [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector) or 1.0
    return [value / length for value in vector]
