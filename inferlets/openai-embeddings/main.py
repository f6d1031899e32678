"""What `pieray serve` runs for a request to /v1/embeddings: the last hidden state of each text, of length 1."""

import math
from typing import Any

from inferlet import InvalidRequest, forward, kv, model, queue
from inferlet.tickets import Ticket


async def main(inputs: list[str | list[int]], truncate_prompt_tokens: int | None = None) -> dict[str, Any]:
    """One vector per input, a text or its token ids.  All run in one batch."""
    lines = [tokens_of(one, at, truncate_prompt_tokens) for at, one in enumerate(inputs)]
    line = queue.create()
    asked = [last_state(line, tokens) for tokens in lines]  # all before any is awaited: they share steps
    return {"vectors": [unit(await state) for state in asked], "num_tokens": sum(map(len, lines))}


def tokens_of(text: str | list[int], at: int, truncate: int | None) -> list[int]:
    tokens = text
    if isinstance(text, str):
        tokens, bos = model.tokenize(text), model.info().get("bos_tokens", [])
        tokens = tokens if tokens[: len(bos)] == bos else [*bos, *tokens]
    most = model.info()["max_context"]
    if truncate is not None:
        tokens = tokens[: most if truncate == -1 else truncate]
    if not 0 < len(tokens) <= most:
        raise InvalidRequest(f"an input has from 1 to {most} tokens, the model's context; input {at} has {len(tokens)}")
    return tokens


def last_state(line: int, tokens: list[int]) -> Ticket[list[float]]:
    pages = kv.alloc(-(-len(tokens) // kv.page_size()))
    run = forward.forward(line, pages, 0, tokens)
    kv.free(pages)  # the pass keeps them until it has run
    return run.hidden()


def unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector) or 1.0
    return [value / length for value in vector]
