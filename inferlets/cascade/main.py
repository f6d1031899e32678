"""Cascade inference: the small model answers first, and the large one only what the small one is not sure of."""

import math
from typing import Any

from inferlet import Context, model


async def main(
    prompt: str = "12+7=", max_tokens: int = 32, small: str = "", large: str = "", least: float = 0.8
) -> dict[str, Any]:
    """The first answer whose tokens have at least the probability `least`, in the geometric mean, or the large model's.
    `small`: "" is the last model that the engine serves; `large`: "" is the default one."""
    tried = []
    for name in (small or model.names()[-1], large or model.names()[0]):
        async with Context(prompt, model=name) as ctx:
            generation = ctx.generate(max_tokens, logprobs=True)
            text = await generation
        scores = (
            [*generation.logprobs, generation.stop_logprob]
            if generation.finish_reason == "stop"
            else generation.logprobs
        )
        sure = math.exp(sum(scores) / max(len(scores), 1))
        tried.append({"model": name, "text": text, "sure": sure})
        if sure >= least:
            break
    return {"text": tried[-1]["text"], "model": tried[-1]["model"], "tried": tried}
