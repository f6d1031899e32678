"""Speculation under a grammar: what must come is not drawn, what is likely to come is drafted, the rest is masked."""

from typing import Any

from inferlet import Context, Grammar, Matcher, Sampler, model, session

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
}


async def main(
    prompt: str = "Extract JSON: In Vari lives Mavi, aged 89.",
    schema: dict[str, Any] | None = None,
    max_tokens: int = 96,
    num_draft: int = 6,
    chat: bool = True,
) -> dict[str, Any]:
    """Greedy JSON of the schema, that of drawing each token under the mask; `num_passes` tells what was saved."""
    stops, said, num_passes, num_forced = model.stop_tokens(), [], 0, 0
    matcher = await Grammar.json_schema(schema or PERSON)
    async with Context.of(prompt, chat=chat) as ctx:
        first = ctx.position
        while len(said) < max_tokens and not (said and said[-1] in stops):
            forced = matcher.forced()
            matcher.accept(forced)
            ctx.append(forced)
            said, num_forced = said + forced, num_forced + len(forced)
            draft = guess(ctx.tokens, matcher, num_draft)
            start = ctx.position
            step = ctx.append(draft).forward()
            asked = []
            with matcher.fork() as ahead:  # each row has the mask of the text before it
                for i in range(len(draft) + 1):
                    asked.append(step.sample(i - len(draft) - 1, sampler=Sampler(0.0, allowed=ahead)))
                    ahead.accept(draft[i : i + 1])
            await step
            tokens = [(await one)[0] for one in asked]
            num_passes += 1
            num_right = next((i for i, token in enumerate(draft) if tokens[i] != token), len(draft))
            new = tokens[: num_right + 1]
            ctx.truncate(start + num_right).append(new[num_right:])  # the KV of what was guessed right stays
            matcher.accept(new)
            said += new
        text = model.detokenize([token for token in ctx.tokens[first:] if token not in stops], skip_special=True)
    session.send(text)
    return {"text": text, "num_tokens": len(said), "num_passes": num_passes, "num_forced": num_forced}


def guess(tokens: list[int], matcher: Matcher, num_draft: int) -> list[int]:
    """What followed the last token the last time, as far as the grammar allows it."""
    for end in range(len(tokens) - 1, 0, -1):
        if tokens[end - 1] == tokens[-1]:
            draft = tokens[end : end + num_draft]
            with matcher.fork() as ahead:
                return draft[: ahead.accept(draft)]
    return []
