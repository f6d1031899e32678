"""Asynchronous tools: the text goes on behind a placeholder while a tool runs, and waits where its value is needed."""

import asyncio
import re
from typing import Any

from inferlet import Context, InvalidRequest, gather, runtime, session
from inferlet.tools import calculate

ACTION = re.compile(r"Action: (\w+)\((.*)\)")
OBSERVATION = "Observation:"
PLACEHOLDERS = ("71", "37", "53", "97")


async def main(
    question: str = "How old are Kemi and Bane together?",
    ages: dict[str, int] | None = None,
    tool_time_s: float = 0.3,
    max_tokens: int = 96,
) -> dict[str, Any]:
    """Each tool takes `tool_time_s`.  A call that needs no value under way starts at once, beside the others."""
    ages, began = {"Kemi": 9, "Bane": 80} if ages is None else ages, runtime.monotonic()

    async def use(tool: str, argument: str) -> str:
        await asyncio.sleep(tool_time_s)  # where a real tool would wait for the network
        try:
            return str(calculate(argument) if tool == "calc" else ages[argument])
        except (InvalidRequest, KeyError) as error:
            return f"error: {error}"

    under_way: list[tuple[int, str, asyncio.Task[str]]] = []  # where its value goes, the placeholder there, the call
    num_calls = num_waits = 0
    async with Context() as ctx:
        ctx.user(f"{question} Use tools.")
        for _ in range(12):
            start = ctx.position
            generation = ctx.generate(max_tokens, stop=OBSERVATION)
            text = await generation
            action = ACTION.search(text) if generation.stopped_by == OBSERVATION else None
            needs = action is None or any(held in action[2] for _, held, _ in under_way)
            if under_way and (needs or len(under_way) == len(PLACEHOLDERS)):
                await settle(ctx, start, under_way)
                num_waits += 1
            elif action is None:
                session.send(text)
                answer = text.rpartition("Answer:")[2].strip()
                took = runtime.monotonic() - began
                return {"answer": answer, "num_calls": num_calls, "num_waits": num_waits, "seconds": took}
            else:
                held, num_calls = PLACEHOLDERS[len(under_way)], num_calls + 1
                under_way.append((ctx.position, held, asyncio.create_task(use(action[1], action[2]))))
                ctx.append(f" {held}\n")
    return {"answer": None, "num_calls": num_calls, "num_waits": num_waits, "seconds": runtime.monotonic() - began}


async def settle(ctx: Context, end: int, under_way: list[Any]) -> None:
    """Wait for what is under way, and write the values where the placeholders are; what came behind `end` goes."""
    values = await gather(*(task for _, _, task in under_way))
    tokens = ctx.tokens[:end]
    places = [place for place, _, _ in under_way] + [end]
    ctx.truncate(places[0])
    for i, ((_, held, _), value) in enumerate(zip(under_way, values, strict=True)):
        skip = len(Context(f" {held}\n", bos=False).tokens)
        ctx.append(f" {value}\n").append(tokens[places[i] + skip : places[i + 1]])
    under_way.clear()
