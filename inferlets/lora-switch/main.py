"""Answer one prompt with the bare model and with several LoRA adapters, side by side."""

import asyncio

from inferlet import Adapter, Context, adapters


async def main(
    prompt: str = "12+7=", adapters_wanted: list[str] | None = None, max_tokens: int = 32, chat: bool = False
) -> dict[str, str]:
    """The text by adapter, the bare model's under ""."""
    wanted = adapters.names() if adapters_wanted is None else adapters_wanted
    opened: list[Adapter | None] = [None, *map(adapters.open, wanted)]
    texts = await asyncio.gather(*(answer(prompt, adapter, max_tokens, chat) for adapter in opened))
    return {adapter.name if adapter else "": text for adapter, text in zip(opened, texts, strict=True)}


async def answer(prompt: str, adapter: Adapter | None, max_tokens: int, chat: bool) -> str:
    async with Context(adapter=adapter) as ctx:
        if chat:
            ctx.user(prompt).cue()
        else:
            ctx.append(prompt)
        return await ctx.generate(max_tokens)
