"""Context-aware decoding: what the context adds to a question counts more than what the model would say without it."""

from typing import Any

from inferlet import Context, sampling, session


async def main(
    context: str = "3+4=7, 12+7=91, ",
    question: str = "12+7=",
    alpha: float = 0.5,
    max_tokens: int = 16,
    chat: bool = False,
) -> dict[str, Any]:
    """Greedy by `(1 + alpha) * logits(context, question) - alpha * logits(question)`."""

    def choose(informed: list[float], prior: list[float]) -> int:
        return sampling.argmax([(1 + alpha) * i - alpha * p for i, p in zip(informed, prior, strict=True)])

    async with Context.of(context + question, chat=chat) as ctx, Context.of(question, chat=chat) as bare:
        generation = ctx.generate(max_tokens, choose=choose, beside=[bare])
        text = await session.stream(generation)
        return {"text": text, "tokens": generation.tokens}
