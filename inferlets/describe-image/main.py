"""Say what is in an image, and answer questions about it: it is seen once, and its KV is computed once."""

from typing import Any

from inferlet import Context, InvalidRequest, gather, images, scratch, session


async def main(
    image: str = "",
    questions: list[str] | str = "What is in this image?",
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int | None = None,
    idle_timeout: float = 60.0,
) -> dict[str, Any]:
    """`image`: base64 of a file, or a data: URL; "": the first file that the client sends.

    Each question is answered as if it alone had been asked.
    """
    asked = [questions] if isinstance(questions, str) else questions
    if not asked:
        raise InvalidRequest("questions: at least one; given none")
    photo = await images.see(image or scratch.read(await session.receive_file(idle_timeout)))

    async def answer(question: str) -> str:
        async with Context() as ctx:
            ctx.user([photo, question])
            return await ctx.collect_text(max_tokens, temperature=temperature, seed=seed)

    first = await answer(asked[0])  # it leaves the pages with the image, which the others find
    replies = [first, *await gather(*map(answer, asked[1:]))]
    session.send("\n".join(replies))
    answers = [{"question": one, "answer": said} for one, said in zip(asked, replies, strict=True)]
    return {"answers": answers, "rows": len(photo)}
