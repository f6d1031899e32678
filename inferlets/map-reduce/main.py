"""Solve each question in a child of its own, and add up what they find."""

import asyncio
from collections.abc import Sequence
from typing import Any

from inferlet import Context, Error, children, session


async def main(
    questions: Sequence[str] = ("12+7=", "3+4=", "20+31="), width: int = 8, max_tokens: int = 16
) -> dict[str, Any]:
    """The sum of the answers; at most `width` children run at one time."""
    room = asyncio.Semaphore(width)
    found = await asyncio.gather(*(ask(question, max_tokens, room) for question in questions))
    ends = dict(zip(questions, found, strict=True))
    answers = {question: end for question, end in ends.items() if isinstance(end, int)}
    failed = {question: str(end) for question, end in ends.items() if isinstance(end, Error)}
    return {"answers": answers, "total": sum(answers.values()), "failed": failed}


async def ask(question: str, max_tokens: int, room: asyncio.Semaphore) -> int | Error:
    async with room, children.launch(solve, question=question, max_tokens=max_tokens) as child:
        async for text in child:
            session.send(f"{question}{text}\n")
        try:
            return int(await child)
        except Error as error:
            return error


async def solve(question: str, max_tokens: int) -> int:
    """What a child runs."""
    async with Context(question) as ctx:
        text = await ctx.generate(max_tokens)
    session.send(text)
    return int("".join(filter(str.isdigit, text.split(";")[0])))
