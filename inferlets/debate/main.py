"""Debaters who answer one question, hear each other's answers over a topic, and answer again."""

import asyncio
import json
import re
from collections import Counter
from typing import Any

from inferlet import Context, messaging, runtime


async def main(
    question: str = "12+7=? Think step by step.",
    debaters: int = 3,
    rounds: int = 2,
    topic: str = "",
    name: str = "",
    max_tokens: int = 64,
    temperature: float = 0.7,
    seed: int = 0,
) -> dict[str, Any]:
    """With a `name`, one of the debaters at `topic`; else all of them, named "0", "1", ..."""
    topic = topic or runtime.instance_id()
    names = [name] if name else [str(i) for i in range(debaters)]
    subscriptions = [await messaging.subscribe(topic) for _ in names]
    seeds = [seed + i for i in range(len(names))]
    sides = [
        debate(question, me, heard, debaters, rounds, max_tokens, temperature, own)
        for me, heard, own in zip(names, subscriptions, seeds, strict=True)
    ]
    said = (await asyncio.gather(*sides))[0]
    return {"answer": majority(said[-1]), "rounds": said}


async def debate(
    question: str,
    me: str,
    heard: messaging.Subscription,
    debaters: int,
    rounds: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> list[dict[str, str]]:
    """What everybody said, by round."""
    said: list[dict[str, str]] = []
    later: list[dict[str, Any]] = []
    for number in range(rounds):
        text = await answer(question, said, max_tokens, temperature, seed + 1000 * number)
        mine = {"round": number, "name": me, "answer": text}
        await messaging.broadcast(heard.topic, json.dumps(mine))
        answers: dict[str, str] = {}
        waiting, later = later, []
        while len(answers) < debaters:
            one = waiting.pop(0) if waiting else json.loads(await heard.next(timeout=60))
            if one["round"] == number:
                answers[one["name"]] = one["answer"]
            else:  # a quick one is a round ahead
                later.append(one)
        said.append(answers)
    return said


async def answer(question: str, said: list[dict[str, str]], max_tokens: int, temperature: float, seed: int) -> str:
    async with Context() as ctx:
        if said:
            ctx.user(question).assistant(f"answer {majority(said[-1])}")
        text = await ctx.user(question).cue().collect_text(max_tokens, temperature=temperature, seed=seed)
    found = re.findall(r"answer (\S+)", text)
    return found[-1] if found else text.strip()


def majority(answers: dict[str, str]) -> str:
    """What most say; of several, the first in order."""
    counts = Counter(answers.values())
    return min(counts, key=lambda text: (-counts[text], text))
