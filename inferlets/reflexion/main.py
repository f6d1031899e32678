"""Reflexion: an evaluator judges each trial, the model reflects on what failed, and remembers that in the next one."""

from typing import Any

from inferlet import Context, ask
from inferlet.tools import calculate

REFLECT = "{question} Think step by step."


async def main(question: str = "537+286=?", max_trials: int = 3, max_tokens: int = 64) -> dict[str, Any]:
    """Trials until the evaluator, a real calculator, is content; it tells what is wrong, not what is right."""
    memory: list[str] = []
    trials: list[str] = []
    for _ in range(max_trials):
        answer = await attempt(question, memory, max_tokens)
        trials.append(answer)
        if is_right(question, answer):
            return {"answer": answer, "is_right": True, "trials": trials, "memory": memory}
        memory.append(await ask(REFLECT.format(question=question), max_tokens, **draw(len(memory))))
    return {"answer": trials[-1], "is_right": False, "trials": trials, "memory": memory}


async def attempt(question: str, memory: list[str], max_tokens: int) -> str:
    """An answer; where there are reflections, the actor goes on behind the latest as if it had just had the thought."""
    async with Context() as ctx:
        if memory:
            ctx.user(REFLECT.format(question=question)).cue().append(memory[-1].rpartition("answer")[0] + "answer")
        else:
            ctx.user(question)
        return (await ctx.collect_text(max_tokens)).strip()


def draw(number: int) -> dict[str, Any]:
    """The first reflection is the likeliest, further ones are drawn."""
    return {"temperature": 0.7, "seed": number} if number else {"temperature": 0.0}


def is_right(question: str, answer: str) -> bool:
    return answer == str(calculate(question.partition("=")[0]))
