"""Embed texts with a language model: hidden states as vectors, and their cosine similarities."""

import math
from collections.abc import Sequence
from typing import Any

from inferlet import InvalidRequest, forward, kv, model, queue
from inferlet.tickets import Ticket


async def main(texts: Sequence[str] = ("12+7=", "31+5=", "Repeat: red blue"), pooling: str = "last") -> dict[str, Any]:
    """One vector per text, and the similarity of each with each."""
    if pooling not in ("last", "mean"):
        raise InvalidRequest(f"pooling is last or mean; given {pooling!r}")
    line = queue.create()
    asked = [states(line, text, pooling) for text in texts]  # all before any is awaited: they share steps
    vectors = [mean([await state for state in rows]) for rows in asked]
    return {"vectors": vectors, "similarity": [[cosine(a, b) for b in vectors] for a in vectors]}


def states(line: int, text: str, pooling: str) -> list[Ticket[list[float]]]:
    tokens = model.tokenize(text)
    if not tokens:
        raise InvalidRequest("an empty text has no vector")
    pages = kv.alloc(-(-len(tokens) // kv.page_size()))
    run = forward.forward(line, pages, 0, tokens)
    kv.free(pages)  # the pass keeps them until it has run
    return [run.hidden(row) for row in (range(len(tokens)) if pooling == "mean" else [-1])]


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
