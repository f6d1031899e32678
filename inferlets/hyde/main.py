"""Hypothetical document embeddings: search with what an answer would look like, not with the question."""

import math
from typing import Any

from inferlet import Context, ask, gather

DOCUMENTS = (
    "answer 19 for 2+7+0=9; 1+0+0=1",
    "answer 70 for 5+5+0=10; 2+4+1=7",
    "answer 139 for 1+8+0=9; 3+0+0=3; 0+1+0=1",
    "answer 89 for 9+0+0=9; 1+7+0=8",
)


async def main(
    question: str = "25+45=? Think step by step.",
    documents: list[str] | tuple[str, ...] = DOCUMENTS,
    max_tokens: int = 64,
    is_hypothetical: bool = True,
) -> dict[str, Any]:
    """The document nearest to a made-up answer (else to the question), by the cosine of mean hidden states."""
    query = await ask(question, max_tokens) if is_hypothetical else question
    vector, *others = await gather(*(embed(text) for text in (query, *documents)))
    common = [sum(column) / len(others) for column in zip(*others, strict=True)]  # what all documents say is no help
    scores = [cosine(less(vector, common), less(other, common)) for other in others]
    best = max(range(len(scores)), key=scores.__getitem__)
    return {"document": documents[best], "index": best, "query": query, "scores": scores}


async def embed(text: str) -> list[float]:
    """The mean of the last hidden states of its tokens."""
    async with Context(text) as ctx:
        step = ctx.forward()
        asked = [step.hidden(row) for row in range(step.num_rows)]
        await step
        rows = [await one for one in asked]
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def less(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
