"""Contrastive decoding: what an expert finds likely and an amateur does not."""

import math
from typing import Any

from inferlet import Context, sampling, session


async def main(
    prompt: str = "a big doctor", alpha: float = 0.1, beta: float = 0.5, max_tokens: int = 32, chat: bool = False
) -> dict[str, Any]:
    """Greedy by `log p_expert - beta * log p_amateur`, among tokens with at least `alpha` of the expert's best.

    The amateur is the same model that sees the last token alone, as one of the amateurs of the paper.
    """

    def choose(expert: list[float], amateur: list[float]) -> int:
        likely, guessed = sampling.log_softmax(expert), sampling.log_softmax(amateur)
        least = max(likely) + math.log(alpha)
        scores = [e - beta * a if e >= least else -math.inf for e, a in zip(likely, guessed, strict=True)]
        forgetful.mask(0, forgetful.position)
        return sampling.argmax(scores)

    async with Context.of(prompt, chat=chat) as ctx:
        await ctx.flush()
        async with ctx.fork() as forgetful:
            forgetful.mask(0, forgetful.position - 1)
            generation = ctx.generate(max_tokens, choose=choose, beside=[forgetful])
            text = await session.stream(generation)
        return {"text": text, "tokens": generation.tokens}
