"""Attention in two levels: within a chunk to all tokens, and across chunks to the last few of each."""

from typing import Any

from inferlet import Context, runtime, session

DOCUMENT = ("the quick brown fox jumps over the lazy dog; ", "3+4=7; 20+31=51; 25+45=70; ", "red blue red blue; ") * 3


async def main(
    document: tuple[str, ...] | list[str] = DOCUMENT, prompt: str = "12+7=", max_tokens: int = 16, keep: int = 4
) -> dict[str, Any]:
    """Greedy text behind a document in chunks.  Of a chunk that is read, its `keep` last tokens stand for it.

    They have seen all of it, and those of the chunks before it.  The pages of the others are given back.
    """
    async with Context() as ctx:
        most = 0
        for chunk in document:
            start = ctx.position
            ctx.append(chunk)
            await ctx.forward()  # its last token too, while it sees the others
            most = max(most, runtime.limits()["used"]["pages"])
            if ctx.position - keep > start:
                await ctx.drop(start, ctx.position - keep)
        num_read = ctx.position
        generation = ctx.append(prompt).generate(max_tokens)
        text = await session.stream(generation)
        return {
            "text": text,
            "tokens": generation.tokens,
            "num_read": num_read,
            "num_pages": runtime.limits()["used"]["pages"],
            "most_pages": most,
        }
