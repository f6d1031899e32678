"""A document longer than the model reads: a question about each part at the same time, and about pairs of answers."""

from typing import Any

from inferlet import ask, gather

DOCUMENT = "3 1 9 0 5 5 2 8 7 4 6 1 0 9 3 2"


async def main(
    document: str = DOCUMENT,
    map_prompt: str = "Sort: {part}",
    reduce_prompt: str = "Merge: {one} | {other}",
    part_words: int = 8,
    max_tokens: int = 64,
) -> dict[str, Any]:
    """`map_prompt` is asked of each `part_words` words, `reduce_prompt` of neighbouring answers until one is left."""
    words = document.split()
    parts = [" ".join(words[start : start + part_words]) for start in range(0, len(words), part_words)]
    answers = list(await gather(*(ask(map_prompt.format(part=part), max_tokens) for part in parts)))
    levels = [answers]
    while len(answers) > 1:
        pairs = list(zip(answers[::2], answers[1::2], strict=False))
        asked = (ask(reduce_prompt.format(one=one, other=other), max_tokens) for one, other in pairs)
        answers = [*await gather(*asked), *answers[len(pairs) * 2 :]]
        levels.append(answers)
    return {"answer": answers[0] if answers else "", "levels": levels}
