"""Recursion of thought: a question that contains questions is answered by contexts that answer these first."""

import ast
from typing import Any

from inferlet import InvalidRequest, ask, gather

Asked = list[dict[str, Any]]


async def main(question: str = "((12+7)+(25+45))+(31+108)", max_tokens: int = 64) -> dict[str, Any]:
    """The value of a sum of sums.  No context holds more than one addition, however deep the question is."""
    asked: Asked = []
    answer = await solve(ast.parse(question, mode="eval").body, 0, asked, max_tokens)
    return {"answer": answer, "num_contexts": len(asked), "asked": asked}


async def solve(node: ast.expr, depth: int, asked: Asked, max_tokens: int) -> int:
    """A number answers itself.  A sum waits for its two sides, each a recursion of its own, and is asked then."""
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            sides = await gather(*(solve(side, depth + 1, asked, max_tokens) for side in (left, right)))
            question = f"{sides[0]}+{sides[1]}=?"
            thought = await ask(f"{question} Think step by step.", max_tokens)
            asked.append({"depth": depth, "question": question, "thought": thought})
            return int(thought.rpartition("answer")[2])
    raise InvalidRequest(f"a question is a sum of whole numbers; given {ast.unparse(node)}")
