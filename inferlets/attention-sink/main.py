"""Attend to the first few tokens and the latest ones only (attention sinks: Xiao et al., arXiv 2309.17453)."""

from typing import Any

from inferlet import Context, runtime, session

PROMPT = "the quick brown fox jumps over the lazy dog, and so on, as 3+4=7, "


async def main(
    prompt: str = PROMPT, max_tokens: int = 32, window: int = 24, num_sinks: int = 4, ignore_eos: bool = False
) -> dict[str, Any]:
    """Greedy text; each token sees the `num_sinks` first tokens, the `window` before it, and itself."""
    async with Context(prompt) as ctx:
        pieces, num_tokens, reason = [], 0, "length"
        while num_tokens < max_tokens:
            first_seen = max(num_sinks, ctx.position - 1 - window)
            if first_seen > num_sinks:
                await ctx.drop(num_sinks, first_seen)
            generation = ctx.generate(1, stop_tokens=() if ignore_eos else None)
            async for token in generation:
                session.send(token.text)
            pieces.append(generation.text)
            num_tokens += generation.num_tokens
            if generation.finish_reason == "stop":
                reason = "stop"
                break
        num_pages = runtime.limits()["used"]["pages"]
        return {
            "text": "".join(pieces),
            "num_tokens": num_tokens,
            "finish_reason": reason,
            "tokens": ctx.tokens,
            "num_pages": num_pages,
        }
