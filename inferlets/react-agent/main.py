"""Reason and act: the model names a tool, this program runs it and writes what it observed into the context."""

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from inferlet import Context, session

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
ACTION = re.compile(r"Action: (\w+)\((.*)\)")
OBSERVATION = "Observation:"


async def main(
    question: str, ages: dict[str, int] | None = None, max_steps: int = 5, max_tokens: int = 96
) -> dict[str, Any]:
    """The model calls `calc(12+7)` and, where `ages` are given, `lookup(name)`, until it answers."""
    tools: dict[str, Callable[[str], str]] = {
        "calc": lambda text: str(calculate(ast.parse(text, mode="eval").body)),
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
                return {"answer": answer_of(text), "steps": steps}
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
    except (SyntaxError, ValueError, ArithmeticError, KeyError) as error:
        return f"error: {error}"


def calculate(node: ast.expr) -> int:
    """The value of an expression of integers and + - * // %."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -calculate(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return int(OPERATORS[type(op)](calculate(left), calculate(right)))
    raise ValueError(f"cannot calculate {ast.unparse(node)}")


def answer_of(text: str) -> str:
    return text.rpartition("Answer:")[2].strip()
