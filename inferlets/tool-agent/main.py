"""An agent: functions with type hints become tools, and the model calls them until it answers."""

import asyncio
from typing import Any

from inferlet import Context, run_tools, tool


async def main(
    question: str = "Set a timer for 6 minutes.",
    reports: dict[str, str] | None = None,
    max_steps: int = 4,
    max_tokens: int = 96,
) -> dict[str, Any]:
    """`reports`: the weather by city.  The tools are functions of this program; nothing leaves the engine."""

    @tool
    async def weather(city: str) -> str:
        """The weather in a city."""
        await asyncio.sleep(0)  # where a real one would wait for the network
        return (reports or {})[city]

    @tool
    def send(to: str, amount: int) -> str:
        """Send somebody coins."""
        if amount <= 0:
            raise ValueError(f"nobody wants {amount} coins, {to} neither")
        return "done"

    @tool
    def timer(minutes: int) -> str:  # noqa: ARG001 - a demonstration
        """Set a timer."""
        return "done"

    tools = [weather, send, timer]
    async with Context(tools=tools) as ctx:
        ctx.user(question)
        answer = await run_tools(ctx, tools, max_steps=max_steps, max_tokens=max_tokens)
        steps = [{"calls": step.calls, "results": step.results} for step in answer.steps]
        return {"answer": answer.text, "steps": steps}
