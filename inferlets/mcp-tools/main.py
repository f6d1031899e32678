"""Reason and act: the model names an action, an MCP server runs it, what it gives goes into the context."""

import re
from typing import Any

from inferlet import Context, mcp, session

ACTION = re.compile(r"Action: calc\((.*)\)")
OBSERVATION = "Observation:"


async def main(
    question: str = "What is 12 plus 7?", server: str = "calc", max_steps: int = 5, max_tokens: int = 96
) -> dict[str, Any]:
    """Until the model answers, or has acted `max_steps` times."""
    tools = {tool.name: tool for tool in await mcp.tools(server)}
    session.emit("tools", {name: tool.description for name, tool in tools.items()})
    steps = []
    async with Context() as ctx:
        ctx.user(f"{question} Use tools.")
        for _ in range(max_steps):
            generation = ctx.generate(max_tokens, stop=OBSERVATION)
            text = await generation
            session.send(text)
            if generation.stopped_by != OBSERVATION:
                return {"answer": text.rpartition("Answer:")[2].strip(), "steps": steps}
            observed = await act(server, text)
            steps.append({"text": text, "observation": observed})
            session.send(f"{OBSERVATION} {observed}\n")
            ctx.append(f" {observed}\n")
    return {"answer": None, "steps": steps}


async def act(server: str, text: str) -> str:
    """What the action in `text` yields; a tool that fails tells the model so."""
    found = ACTION.search(text)
    if found is None:
        return "error: no action calc(...)"
    result = await mcp.call(server, "calculate", expression=found[1])
    return f"error: {result.text}" if result.is_error else result.text
