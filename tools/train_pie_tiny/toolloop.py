"""The free-running tool loop: the model writes, real tools answer, until it ends its turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tools.train_pie_tiny.tasks import Item, calculate
from tools.train_pie_tiny.words import END

if TYPE_CHECKING:
    from tools.train_pie_tiny.generate import Generator

STOP = "Observation:"
MAX_HOPS = 5
ACTION = re.compile(r"Action: (calc|lookup)\((.*)\)\n?\s*$")
EXPRESSION = re.compile(r"(-?\d+)([-+*])(-?\d+)")


def use_tool(written: str, ages: Sequence[tuple[str, int]]) -> str:
    """Runs the last action the model wrote; a bad one is answered with `error`."""
    action = ACTION.search(written.removesuffix(STOP))
    if action is None:
        return "error"
    tool, argument = action.groups()
    if tool == "lookup":
        return str(dict(ages).get(argument, "error"))
    expression = EXPRESSION.fullmatch(argument)
    if expression is None:
        return "error"
    first, operation, second = expression.groups()
    return str(calculate(int(first), operation, int(second)))


def answer_of(transcript: str) -> str:
    """What stands after the last `Answer:`, or nothing."""
    _, found, rest = transcript.rpartition("Answer: ")
    return rest.removesuffix(END).strip() if found else ""


def run_loop(generator: Generator, items: Sequence[Item]) -> list[str]:
    """The answers the loop reaches on `items`, all run side by side."""
    transcripts = [item.segments[0].text for item in items]
    running = list(range(len(items)))
    for _ in range(MAX_HOPS):
        written = generator.write([transcripts[i] for i in running], stops=(STOP,), limit=64)
        still = []
        for index, text in zip(running, written, strict=True):
            transcripts[index] += text
            if text.endswith(STOP):
                transcripts[index] += f" {use_tool(text, items[index].ages)}\n"
                still.append(index)
        running = still
        if not running:
            break
    return [answer_of(transcript) for transcript in transcripts]
