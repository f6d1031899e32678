"""Self-refine: the model answers, comments on its answer, and answers again until it has nothing to add."""

from typing import Any

from inferlet import ask


async def main(
    question: str = "537+286=?", comment: str = "{question} Think step by step.", rounds: int = 4, max_tokens: int = 64
) -> dict[str, Any]:
    """`comment` asks for the feedback.  No calculator and no right answer takes part: only the model."""
    answer = await ask(question, max_tokens)
    drafts, comments = [answer], []
    for number in range(rounds):
        options = {"temperature": 0.7, "seed": number} if number else {"temperature": 0.0}
        feedback = await ask(comment.format(question=question, answer=answer), max_tokens, **options)
        comments.append(feedback)
        refined = feedback.rpartition("answer")[2].strip()
        if refined == answer:
            break
        answer = refined
        drafts.append(answer)
    return {"answer": answer, "drafts": drafts, "comments": comments}
