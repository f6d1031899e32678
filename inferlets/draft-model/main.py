"""Speculative decoding with two models: a small one drafts a few tokens, the large one verifies them in one pass."""

from typing import Any

from inferlet import Context, DraftModel, model, session


async def main(
    prompt: str = "Sort: 9 4 7 1", max_tokens: int = 64, draft: str = "", temperature: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """What the default model says without drafts too.  `draft`: the model that drafts; "": the last one that the engine
    serves.  `num_passes`: of the default one, which would be one for each token."""
    async with Context(prompt) as ctx, Context(model=draft or model.names()[-1]) as small:
        drafts = DraftModel(small, ctx)
        generation = ctx.generate(max_tokens, drafter=drafts, temperature=temperature, seed=seed)
        text = await session.stream(generation)
    return {
        "text": text,
        "num_tokens": generation.num_tokens,
        "num_passes": drafts.num_passes,
        "num_drafted": drafts.num_drafted,
        "num_right": drafts.num_right,
    }
