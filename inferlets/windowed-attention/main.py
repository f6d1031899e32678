"""Sliding-window attention: each new token attends to the latest ones only, and memory stays what the window needs."""

from typing import Any

from inferlet import Context, runtime, session


async def main(
    prompt: str = "the quick brown fox jumps over the lazy dog, and so on, as 3+4=7, ",
    max_tokens: int = 32,
    window: int = 24,
    ignore_eos: bool = False,
) -> dict[str, Any]:
    """Greedy text; each token sees the `window` before it and itself.  The prompt is read whole."""
    async with Context(prompt) as ctx:
        text, num_tokens = "", 0
        while num_tokens < max_tokens:
            if ctx.position - 1 - window > 0:
                await ctx.drop(0, ctx.position - 1 - window)
            generation = ctx.generate(1, stop_tokens=() if ignore_eos else None)
            text += await session.stream(generation)
            num_tokens += generation.num_tokens
            if generation.finish_reason == "stop":
                break
        return {
            "text": text,
            "num_tokens": num_tokens,
            "tokens": ctx.tokens,
            "num_pages": runtime.limits()["used"]["pages"],
        }
