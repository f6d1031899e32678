"""A producer, and workers that share its prompts: every prompt is completed once, by whoever is free."""

import asyncio
import json
from typing import Any

from inferlet import Context, messaging, runtime


async def main(
    role: str = "all", job: str = "", prompts: list[str] | None = None, workers: int = 2, max_tokens: int = 8
) -> Any:
    """`role`: "producer" (of work for `workers` workers), "worker", or "all": both, in one inferlet."""
    job = job or runtime.instance_id()
    if role == "worker":
        return await work(job, runtime.instance_id(), max_tokens)
    producing = produce(job, ["12+7=", "3+4=", "20+31="] if prompts is None else prompts, workers)
    if role == "producer":
        return await producing
    names = [f"worker-{i}" for i in range(workers)]
    answers, *_ = await asyncio.gather(producing, *(work(job, name, max_tokens) for name in names))
    return answers


async def produce(job: str, prompts: list[str], workers: int) -> list[dict[str, Any]]:
    answers: dict[int, dict[str, Any]] = {}

    async def push() -> None:
        for number, prompt in enumerate(prompts):
            await messaging.push(f"{job}/tasks", json.dumps({"number": number, "prompt": prompt}), timeout=600)

    async def collect() -> None:
        while len(answers) < len(prompts):
            answer = json.loads(await messaging.pull(f"{job}/answers"))
            answers[answer.pop("number")] = answer

    await asyncio.gather(push(), collect())
    for _ in range(workers):
        await messaging.push(f"{job}/tasks", "end")
    return [answers[number] for number in range(len(prompts))]


async def work(job: str, name: str, max_tokens: int) -> int:
    count = 0
    while (text := await messaging.pull(f"{job}/tasks")) != "end":
        task = json.loads(text)
        async with Context(task["prompt"]) as ctx:
            answer = await ctx.collect_text(max_tokens)
        await messaging.push(f"{job}/answers", json.dumps({"number": task["number"], "text": answer, "worker": name}))
        count += 1
    return count
