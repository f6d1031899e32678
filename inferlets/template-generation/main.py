"""Fill the holes of a template: its own words are never generated, each hole is, under a pattern of its own."""

import re
from typing import Any

from inferlet import Context, Grammar, model, session

HOLE = re.compile(r"\{(\w+)(?::((?:[^{}]|\{\d+(?:,\d*)?\})*))?\}")


async def main(
    prompt: str = "Extract JSON: In Vari lives Mavi, aged 89.",
    template: str = '{"name": "{name:[A-Z][a-z]+}", "age": {age:[0-9]{1,3}}, "city": "{city:[A-Z][a-z]+}"}',
    max_tokens: int = 16,
    temperature: float = 0.0,
    seed: int | None = None,
    chat: bool = True,
) -> dict[str, Any]:
    """A hole is `{name}` or `{name:pattern}`, a regular expression; it ends before the character behind it."""
    values: dict[str, str] = {}
    holes, end, num_generated = list(HOLE.finditer(template)), 0, 0
    async with Context.of(prompt, chat=chat) as ctx:
        for hole, following in zip(holes, [*holes[1:], None], strict=True):
            fixed = template[end : hole.start()]
            session.send(fixed)
            start, end = ctx.append(fixed).position, hole.end()
            behind = template[end : following.start() if following else len(template)]
            pattern = Grammar.regex(f"({hole[2]}){re.escape(behind)}") if hole[2] else None
            generation = ctx.generate(max_tokens, temperature=temperature, seed=seed, stop=behind[:1], schema=pattern)
            value = values[hole[1]] = await session.stream(generation)
            num_generated += generation.num_tokens
            if generation.finish_reason == "stop":  # the token that says so may begin within the hole: word for word
                ctx.truncate(ctx.position - 1)
                ctx.append(value[len(model.detokenize(ctx.tokens[start:])) :])
        session.send(template[end:])
    return {"text": filled(template, values), "values": values, "num_generated": num_generated}


def filled(template: str, values: dict[str, str]) -> str:
    return HOLE.sub(lambda hole: values[hole[1]], template)
