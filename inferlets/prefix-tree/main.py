"""Many prompts as one tree: what several of them begin with is computed once, to the token."""

from itertools import groupby
from typing import Any

from inferlet import Context, gather, model

PROMPTS = ("3+4=7, 12+7=", "3+4=7, 12+9=", "3+4=7, 25+45=", "3+4=7, 1")


async def main(prompts: list[str] | tuple[str, ...] = PROMPTS, max_tokens: int = 8) -> dict[str, Any]:
    """The greedy text after each prompt, and the size of the tree: tokens of the prompts, those shared counted once."""
    texts: dict[int, str] = {}
    size = 0

    async def grow(ctx: Context, branch: list[tuple[list[int], int]]) -> None:
        """`branch`: what is left of each prompt that begins with the context, in order."""
        nonlocal size
        async with ctx:
            shared = common(branch[0][0], branch[-1][0])
            size += shared
            ctx.append(branch[0][0][:shared])
            left = [(tokens[shared:], index) for tokens, index in branch]
            if len(left) == 1:
                texts[left[0][1]] = await ctx.collect_text(max_tokens)
                return
            if shared:
                await ctx.forward()  # the last token too: no fork runs it again
            groups = [list(group) for _, group in groupby(left, key=lambda one: one[0][:1])]
            if not left[0][0]:  # prompts that end here
                groups[:1] = [[one] for one in groups[0]]
            await gather(*(grow(ctx.fork(), group) for group in groups))

    await grow(Context(bos=False), sorted((model.tokenize(prompt), index) for index, prompt in enumerate(prompts)))
    return {"texts": [texts[index] for index in range(len(prompts))], "tree": size}


def common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    return next(
        (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )
