"""A swarm of agents: some answer questions, each other one owns a tool, and all talk through queues."""

import json
from typing import Any

from inferlet import Context, InvalidRequest, children, gather, messaging, runtime
from inferlet.tools import calculate

TOOLS = ("calc", "lookup")
QUESTIONS = ("How old are Kemi and Bane together?", "What is 12 plus 7?", "Compute 6 times 8.")


async def main(
    questions: list[str] | tuple[str, ...] = QUESTIONS, ages: dict[str, int] | None = None, max_tokens: int = 96
) -> dict[str, Any]:
    """Each agent is an inferlet of its own, wherever the engine has room; who thinks does not know who calculates."""
    ages, desk = {"Kemi": 9, "Bane": 80} if ages is None else ages, runtime.instance_id()
    owners = {tool: children.launch(serve, desk=desk, tool=tool, ages=ages) for tool in TOOLS}
    thinkers = [children.launch(think, desk=desk, question=question, max_tokens=max_tokens) for question in questions]
    answers = await gather(*thinkers)
    for tool in owners:
        await messaging.push(f"{desk}/{tool}", "")
    served = {tool: await owner for tool, owner in owners.items()}
    return {"answers": dict(zip(questions, answers, strict=True)), "served": served}


async def think(desk: str, question: str, max_tokens: int) -> str:
    """Reason, and leave each action to the agent whose tool it names."""
    own = runtime.instance_id()
    async with Context() as ctx:
        ctx.user(f"{question} Use tools.")
        for _ in range(8):
            thought = ctx.generate(max_tokens, stop="Observation:")
            text = await thought
            if thought.stopped_by != "Observation:":
                return text.rpartition("Answer:")[2].strip()
            tool, _, argument = text.rpartition("Action: ")[2].strip().removesuffix(")").partition("(")
            if tool not in TOOLS:
                ctx.append(f" error: the tools are {', '.join(TOOLS)}\n")
                continue
            await messaging.push(f"{desk}/{tool}", json.dumps({"argument": argument, "to": own}), timeout=10)
            ctx.append(f" {await messaging.pull(own, timeout=10)}\n")
    return ""


async def serve(desk: str, tool: str, ages: dict[str, int]) -> int:
    """Own one tool: serve whoever asks, until an empty task comes; how many were served."""
    use = {"calc": calculate, "lookup": ages.__getitem__}[tool]
    count = 0
    while task := await messaging.pull(f"{desk}/{tool}", timeout=60):
        asked = json.loads(task)
        try:
            observed = str(use(asked["argument"]))
        except (InvalidRequest, KeyError) as error:
            observed = f"error: {error}"
        await messaging.push(asked["to"], observed)
        count += 1
    return count
