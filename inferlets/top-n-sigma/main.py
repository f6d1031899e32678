"""Top-n-sigma sampling as a tensor program: it runs where the logits are, in plans."""

from typing import Any

from inferlet import Context, session, tensor


async def main(
    prompt: str = "the", n: float = 1.0, temperature: float = 1.0, max_tokens: int = 32, seed: int = 0
) -> dict[str, Any]:
    """Draw among the tokens whose logits are at most `n` standard deviations below the best, whatever `temperature`."""

    def kept(logits: tensor.Tensor) -> tensor.Tensor:
        return tensor.where(logits >= logits.max() - n * logits.std(), logits / temperature, -tensor.inf)

    with tensor.draw(kept) as program:
        async with Context(prompt) as ctx:
            generation = ctx.generate(max_tokens, programs=[program], temperature=1.0, seed=seed)
            text = await session.stream(generation)
            return {"text": text, "tokens": ctx.tokens, "num_tokens": generation.num_tokens}
