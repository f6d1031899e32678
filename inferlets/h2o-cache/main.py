"""H2O: pages that little attention goes to are given back, the heavy hitters and the latest stay."""

from typing import Any

from inferlet import Context, kv, runtime, session, tensor

PROMPT = "the quick brown fox jumps over the lazy dog, and so on, as 3+4=7, 20+31=51, 25+45=70, red blue red blue; "


async def main(
    prompt: str = PROMPT, budget: int = 4, recent: int = 2, max_tokens: int = 48, ignore_eos: bool = False
) -> dict[str, Any]:
    """Greedy text over at most `budget` whole pages: of those before the `recent` ones, the least attended to goes."""
    size, live, dropped, text, num_tokens = kv.page_size(), [], [], "", 0
    seen = tensor.attention(states={"total": "P"}, update=lambda total, mass: {"total": total + mass})
    async with Context(prompt) as ctx:
        while num_tokens < max_tokens:
            left = min(size - (ctx.position - 1) % size, max_tokens - num_tokens)
            generation = ctx.generate(left, programs=[seen], stop_tokens=() if ignore_eos else None)
            text += await session.stream(generation)
            num_tokens += generation.num_tokens
            if generation.finish_reason == "stop":
                break
            totals = await seen.states()
            newest = live[-1] if live else -1
            live += range(newest + 1, newest + 1 + len(totals) - len(live))
            while len(live) > budget:
                at = min(range(len(live) - recent), key=totals.__getitem__)
                page = live.pop(at)
                dropped.append([ctx.position - 1, page, totals.pop(at)])
                await ctx.drop(page * size, (page + 1) * size)
            seen.close()
            seen = seen.again(totals)
        pages = runtime.limits()["used"]["pages"]
        return {"text": text, "tokens": ctx.tokens, "num_tokens": num_tokens, "num_pages": pages, "dropped": dropped}
