"""Presence and frequency penalties and a least number of tokens: what vLLM's SamplingParams have, as a function."""

from collections import Counter
from typing import Any

from inferlet import Context, Sampler, Token, model, session


async def main(
    prompt: str = "the",
    max_tokens: int = 32,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    min_tokens: int = 0,
    temperature: float = 0.0,
    seed: int | None = None,
) -> dict[str, Any]:
    """Penalties count the tokens generated, as OpenAI and vLLM define them."""
    counts: Counter[int] = Counter()

    def sampler() -> Sampler:
        bias = {token: -presence_penalty - frequency_penalty * count for token, count in counts.items()}
        if counts.total() < min_tokens:
            bias |= dict.fromkeys(model.stop_tokens(), float("-inf"))
        return Sampler(temperature, seed=seed, logit_bias=bias)

    def penalize(token: Token) -> Sampler:
        counts[token.id] += 1
        return sampler()

    async with Context(prompt) as ctx:
        generation = ctx.generate(max_tokens, sampler=sampler(), on_token=penalize)
        async for token in generation:
            session.send(token.text)
    return {"text": generation.text, "tokens": generation.tokens, "finish_reason": generation.finish_reason}
