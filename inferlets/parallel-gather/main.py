"""Complete several prompts at once: asyncio.gather over contexts, whose passes share the batcher's steps."""

import asyncio
from collections.abc import Sequence

from inferlet import Context, session


async def main(
    prompts: Sequence[str] = ("12+7=", "3+4=", "20+31="), max_tokens: int = 64, preamble: str = "", chat: bool = False
) -> list[dict[str, object]]:
    """One result per prompt, in order; each is also sent as it comes.  `preamble` is computed once, for all."""
    async with Context() as root:
        if preamble and chat:
            root.system(preamble)
        else:
            root.append(preamble)
        await root.flush()
        tasks = (complete(root.fork(), index, prompt, max_tokens, chat) for index, prompt in enumerate(prompts))
        return await asyncio.gather(*tasks)


async def complete(ctx: Context, index: int, prompt: str, max_tokens: int, chat: bool) -> dict[str, object]:
    async with ctx:
        if chat:
            ctx.user(prompt)
        else:
            ctx.append(prompt)
        generation = ctx.generate(max_tokens)
        text = await generation
    session.send(f"{index}: {text}\n")
    return {"text": text, "num_tokens": generation.num_tokens, "finish_reason": generation.finish_reason}
