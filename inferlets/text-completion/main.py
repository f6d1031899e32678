"""Complete a prompt, streaming the text as it comes."""

from typing import Any

from inferlet import Context, session


async def main(
    prompt: str = "12+7=",
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int | None = None,
    stop: list[str] | str = "",
    chat: bool = False,
    ignore_eos: bool = False,
) -> dict[str, Any]:
    """`chat`: the prompt is a user's message.  Temperature 0 takes the most probable tokens.

    `ignore_eos`: go on to max_tokens, whatever the model says.
    """
    async with Context() as ctx:
        if chat:
            ctx.user(prompt)
        else:
            ctx.append(prompt)
        generation = ctx.generate(
            max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            stop=stop,
            stop_tokens=() if ignore_eos else None,
        )
        await session.stream(generation)
    return {"text": generation.text, "num_tokens": generation.num_tokens, "finish_reason": generation.finish_reason}
