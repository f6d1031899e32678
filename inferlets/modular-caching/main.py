"""Prompt modules whose KV is computed once, each by itself, and put together in any choice (Prompt Cache)."""

import hashlib
from collections.abc import Sequence
from typing import Any

from inferlet import Evicted, NotFound, forward, kv, model, queue, session

MODULES = ("3+4=7, 20+31=51, ", "the quick brown fox jumps over the lazy dog, ", "25+45=70, ")


async def main(
    modules: Sequence[str] = MODULES,
    use: Sequence[int] = (0, 2),
    prompt: str = "12+7=",
    max_tokens: int = 16,
    ttl: float = 3600,
) -> dict[str, Any]:
    """`modules`: the schema, each with its own range of positions; `use`: those that this prompt takes, in order."""
    line, size, stops = queue.create(), kv.page_size(), model.stop_tokens()
    texts = [model.tokenize(text) for text in modules]
    starts = [sum(map(len, texts[:i])) for i in range(len(texts) + 1)]
    pages: list[int] = []
    num_computed = num_cached = 0
    for i in use:
        own, is_cached = await module(line, texts[i], starts[i], ttl)
        pages += own
        num_cached += is_cached
        num_computed += 0 if is_cached else len(texts[i])
        if unused := -len(texts[i]) % size:  # the rest of its last page holds nothing
            kv.mask(own[-1], size - unused, unused)
    pending, position, kv_len = model.tokenize(prompt), starts[-1], len(pages) * size
    pages += kv.alloc(-(-(len(pending) + max_tokens) // size))
    said: list[int] = []
    while len(said) < max_tokens:
        where = range(position, position + len(pending))
        (token,) = await forward.forward(line, pages, kv_len, pending, where).sample()
        num_computed += len(pending)
        position, kv_len = position + len(pending), kv_len + len(pending)
        if token in stops:
            break
        said.append(token)
        pending = [token]
    text = model.detokenize(said, skip_special=True)
    session.send(text)
    return {"text": text, "tokens": said, "num_cached": num_cached, "num_computed": num_computed}


async def module(line: int, tokens: list[int], start: int, ttl: float) -> tuple[list[int], bool]:
    """Pages of a module, whose tokens see each other alone, at positions from `start` on; whether they were there."""
    name = f"modular-caching/{start}/{hashlib.sha256(repr(tokens).encode()).hexdigest()[:32]}"
    try:
        return (await kv.import_pages(name)).pages, True
    except (NotFound, Evicted):
        pages = kv.alloc(-(-len(tokens) // kv.page_size()))
        await forward.forward(line, pages, 0, tokens, range(start, start + len(tokens)))
        await kv.export_pages(name, pages, len(tokens), ttl=ttl, replace=True)
        return pages, False
