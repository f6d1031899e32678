"""Reason and act: the model names a tool, this program runs it and writes what it observed into the context."""

import re
from collections.abc import Callable
from typing import Any

from inferlet import Context, InvalidRequest, session
from inferlet.tools import calculate

ACTION = re.compile(r"Action: (\w+)\((.*)\)")
OBSERVATION = "Observation:"


async def main(
    question: str = "What is 12 plus 7?", ages: dict[str, int] | None = None, max_steps: int = 5, max_tokens: int = 96
) -> dict[str, Any]:
    """The model calls `calc(12+7)` and, where `ages` are given, `lookup(name)`, until it answers."""
    tools: dict[str, Callable[[str], str]] = {
        "calc": lambda text: str(calculate(text)),
        "lookup": lambda name: str((ages or {})[name]),
    }
    steps = []
    async with Context() as ctx:
        ctx.user(f"{question} Use tools.")
        for _ in range(max_steps):
            generation = ctx.generate(max_tokens, stop=OBSERVATION)
            text = await generation
            session.send(text)
            if generation.stopped_by != OBSERVATION:
                return {"answer": text.rpartition("Answer:")[2].strip(), "steps": steps}
            observed = act(text, tools)
            steps.append({"text": text, "observation": observed})
            session.send(f"{OBSERVATION} {observed}\n")
            ctx.append(f" {observed}\n")
    return {"answer": None, "steps": steps}


def act(text: str, tools: dict[str, Callable[[str], str]]) -> str:
    """What the action in `text` yields; a mistake is an observation too."""
    found = ACTION.search(text)
    if found is None or found[1] not in tools:
        return f"error: the tools are {', '.join(tools)}"
    try:
        return tools[found[1]](found[2])
    except (InvalidRequest, KeyError) as error:
        return f"error: {error}"
