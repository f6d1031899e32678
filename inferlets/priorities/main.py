"""Read several prompts through queues of their own, the urgent ones first; written on the handlers alone."""

import asyncio
from collections.abc import Sequence
from typing import Any

from inferlet import InvalidRequest, forward, kv, model, queue


async def main(
    prompts: Sequence[str] = ("12+7=", "3+4=", "20+31="), priorities: Sequence[int] = (0, 5, 10)
) -> dict[str, Any]:
    """The next token of each prompt, and the order in which they were ready; priorities are from -100 to 100."""
    if len(prompts) != len(priorities):
        raise InvalidRequest(f"as many priorities as prompts; given {len(priorities)} and {len(prompts)}")
    order: list[int] = []
    lines = [queue.create() for _ in prompts]
    for line, priority in zip(lines, priorities, strict=True):
        queue.set_priority(line, priority)
    reads = [read(index, line, prompts[index], order) for index, line in enumerate(lines)]
    texts = await asyncio.gather(*reads)
    for line in lines:
        await queue.synchronize(line)  # nothing of it runs any more
        queue.close(line)
    return {"order": order, "next": texts}


async def read(index: int, line: int, prompt: str, order: list[int]) -> str:
    tokens = model.tokenize(prompt)
    pages = kv.alloc(-(-len(tokens) // kv.page_size()))
    try:
        drawn = forward.forward(line, pages, 0, tokens).sample()
        queue.flush(line)  # on its way now, whatever this program does next
        (token,) = await drawn
        order.append(index)
        return model.detokenize([token])
    finally:
        kv.free(pages)
