"""Skeleton of thought: the points of an answer first, then all of them at the same time."""

from typing import Any

from inferlet import Context, gather, session


async def main(
    question: str = "Sort: 7 3 5",
    expand: str = "{point}+{point}=? Think step by step.",
    preamble: str = "",
    max_tokens: int = 64,
) -> dict[str, Any]:
    """The reply to `question` is the skeleton, a point a word; `expand` asks about one.  `preamble` is read once."""
    async with Context() as root:
        if preamble:
            root.system(preamble)
        await root.flush()
        skeleton = await reply(root.fork(), question, max_tokens)
        points = skeleton.split()
        session.send(f"{skeleton}\n")
        asked = (reply(root.fork(), expand.format(point=point), max_tokens) for point in points)
        expanded = await gather(*asked)  # they share the steps of the engine: the time of one
    for point, text in zip(points, expanded, strict=True):
        session.send(f"{point}: {text}\n")
    return {"skeleton": skeleton, "points": points, "expanded": expanded}


async def reply(ctx: Context, question: str, max_tokens: int) -> str:
    async with ctx:
        return await ctx.user(question).collect_text(max_tokens)
