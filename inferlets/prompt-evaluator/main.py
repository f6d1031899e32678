"""Judge prompts without generating: which of them makes the right answers most probable."""

from typing import Any

from inferlet import Context, gather

PROMPTS = ("{question}=", "What is {question}?", "Sort: {question}")
EXAMPLES = (("12+7", "19"), ("25+45", "70"), ("3+4", "7"))


async def main(
    prompts: list[str] | tuple[str, ...] = PROMPTS,
    examples: list[tuple[str, str]] | tuple[tuple[str, str], ...] = EXAMPLES,
    chat: bool = False,
) -> dict[str, Any]:
    """Templates with `{question}` ranked by the mean log-probability of the examples' answers, in nats an answer."""
    asked = [
        score(prompt.format(question=question), answer, chat) for prompt in prompts for question, answer in examples
    ]
    scores = await gather(*asked)  # all of them share the engine's steps
    size = len(examples)
    rows = [scores[i * size : (i + 1) * size] for i in range(len(prompts))]
    ranked = sorted(zip(prompts, rows, strict=True), key=lambda row: -sum(row[1]))
    return {
        "best": ranked[0][0],
        "ranking": [{"prompt": prompt, "score": sum(row) / size, "scores": row} for prompt, row in ranked],
    }


async def score(prompt: str, answer: str, chat: bool) -> float:
    async with Context.of(prompt, chat=chat) as ctx:
        return sum(await ctx.logprobs(answer))
