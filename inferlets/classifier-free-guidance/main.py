"""Classifier-free guidance of a language model: two prompts, one text."""

from typing import Any

from inferlet import Context, sampling, session


async def main(
    prompt: str = "Sort: 3 1 2",
    away: str = "",
    scale: float = 1.5,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int | None = None,
    chat: bool = False,
) -> dict[str, Any]:
    """Text from the logits `away + scale * (prompt - away)`; 1: the prompt alone.  The two share every step."""
    random = sampling.randoms(seed)

    def choose(good: list[float], bad: list[float]) -> int:
        guided = [b + scale * (g - b) for g, b in zip(good, bad, strict=True)]
        return sampling.draw(sampling.softmax(guided, temperature), random) if temperature else sampling.argmax(guided)

    async with Context.of(prompt, chat=chat) as towards, Context.of(away or "\n", chat=chat) as apart:
        generation = towards.generate(max_tokens, choose=choose, beside=[apart])
        text = await session.stream(generation)
    num_drawn = generation.num_tokens + (generation.stopped_by is not None)  # a stop token is drawn too
    return {"text": text, "num_tokens": num_drawn}
