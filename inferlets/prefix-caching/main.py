"""Compute a long prefix once: the first run saves it, later runs open it and compute the rest alone."""

import hashlib
from typing import Any

from inferlet import Context, Evicted, NotFound, model, session


async def main(
    prefix: str = "12+", prompt: str = "7=", max_tokens: int = 32, ttl: float = 3600, access: str = "owner"
) -> dict[str, Any]:
    """The text after prefix and prompt, the same with and without the cache; `num_computed` tokens were run for it."""
    name = "prefix-caching/" + hashlib.sha256(prefix.encode()).hexdigest()[:32]
    ctx = await opened(name, prefix)
    is_cached = ctx is not None
    if ctx is None:
        ctx = Context(prefix)
        await ctx.save(name, ttl=ttl, access=access)
    num_there = ctx.sequence.kv_len if is_cached else 0
    async with ctx:
        ctx.append(prompt)
        num_computed = ctx.position - num_there
        generation = ctx.generate(max_tokens)
        await session.stream(generation)
        return {"text": generation.text, "num_computed": num_computed, "is_cached": is_cached}


async def opened(name: str, prefix: str) -> Context | None:
    """The context saved under the name; None if there is none, or (who knows who saved it) not with this prefix."""
    try:
        ctx = await Context.open(name)
    except (NotFound, Evicted):
        return None
    if ctx.tokens == model.tokenize(prefix):
        return ctx
    ctx.close()
    return None
