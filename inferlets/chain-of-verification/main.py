"""Chain of verification: a draft, questions that would show its faults, their answers alone, and a revision."""

import re
from typing import Any

from inferlet import InvalidRequest, ask, gather


async def main(question: str = "537+286=?", max_tokens: int = 32) -> dict[str, Any]:
    """Sums of whole numbers.  No answer sees the draft or another answer, so that no fault is copied."""
    draft, questions = await ask(question, max_tokens), plan(question)
    answers = await gather(*(ask(one, max_tokens) for one in questions))
    revised = revise([int(answer) if answer.isdigit() else -1 for answer in answers])
    is_confirmed = draft == revised
    return {
        "answer": draft if is_confirmed or not revised else revised,
        "draft": draft,
        "is_confirmed": is_confirmed,
        "checks": dict(zip(questions, answers, strict=True)),
    }


def plan(question: str) -> list[str]:
    """What to ask: the sum of the digits of each column, the last column first."""
    found = re.match(r"(\d+)\+(\d+)=", question)
    if found is None:
        raise InvalidRequest(f"a question is like 12+7=?; given {question[:100]!r}")
    width = max(map(len, found.groups()))
    one, other = (number.zfill(width) for number in found.groups())
    return [f"{x}+{y}=?" for x, y in zip(reversed(one), reversed(other), strict=True)]


def revise(columns: list[int]) -> str:
    """The number that the answers add up to; nothing if one of them is no number."""
    return "" if -1 in columns else str(sum(value * 10**place for place, value in enumerate(columns)))
