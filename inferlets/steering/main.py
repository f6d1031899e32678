"""Activation steering: the difference of two kinds of text, added to the residual stream, moves a third one."""

from typing import Any

from inferlet import Context, session, tensor

Vector = list[float]


async def state(text: str, layer: int) -> Vector:
    """The residual stream in front of a layer at the last token."""
    with tensor.read_hidden(layer) as program:
        async with Context(text) as ctx:
            await ctx.generate(1, programs=[program])
            return await program.states()


async def mean(texts: list[str], layer: int) -> Vector:
    """Of the states of texts."""
    states = [await state(text, layer) for text in texts]
    return [sum(column) / len(states) for column in zip(*states, strict=True)]


async def main(
    prompt: str = "the cat and the",
    towards: list[str] | None = None,
    away: list[str] | None = None,
    layer: int = 3,
    scale: float = 1.0,
    token: str = "1",
    max_tokens: int = 24,
) -> dict[str, Any]:
    """Greedy text under `scale` times mean(towards) - mean(away); how the next logit of `token` moves."""
    plus = await mean(towards or ["3+4=", "20+31=", "8+8="], layer)
    minus = await mean(away or ["the king and the", "a red", "the"], layer)
    vector = [a - b for a, b in zip(plus, minus, strict=True)]
    logits = []
    with tensor.steer(vector, layer, scale) as program:
        for programs in ([], [program]):
            async with Context(prompt) as ctx:
                step = ctx.forward()
                tensor.use(step, *programs)
                logits.append(await step.logits())
        async with Context(prompt) as ctx:
            text = await session.stream(ctx.generate(max_tokens, programs=[program]))
            (watched,) = Context(token, bos=False).tokens
            return {"text": text, "tokens": ctx.tokens, "before": logits[0][watched], "after": logits[1][watched]}
