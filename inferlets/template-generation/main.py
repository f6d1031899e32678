"""Fill the holes of a template: its own words are never generated, each hole is, under a pattern of its own."""

import re
from typing import Any

from inferlet import Context, Grammar, session

HOLE = re.compile(r"\{(\w+)(?::((?:[^{}]|\{\d+(?:,\d*)?\})*))?\}")


async def main(
    prompt: str = "Extract JSON: In Vari lives Mavi, aged 89.",
    template: str = '{"name": "{name:[A-Z][a-z]+}", "age": {age:[0-9]{1,3}}, "city": "{city:[A-Z][a-z]+}"}',
    max_tokens: int = 16,
    temperature: float = 0.0,
    seed: int | None = None,
    chat: bool = True,
) -> dict[str, Any]:
    """A hole is `{name}` or `{name:pattern}`, a regular expression; without one it ends before what follows it."""
    values: dict[str, str] = {}
    text, end, num_generated = "", 0, 0
    async with Context.of(prompt, chat=chat) as ctx:
        for hole in HOLE.finditer(template):
            fixed, following = template[end : hole.start()], template[hole.end() : hole.end() + 1]
            ctx.append(fixed)
            ends = re.escape(following)  # the character behind a hole is drawn with it: the model says when it is full
            pattern = Grammar.regex(f"({hole[2]}){ends}") if hole[2] else None
            generation = ctx.generate(max_tokens, temperature=temperature, seed=seed, stop=following, schema=pattern)
            values[hole[1]] = await generation
            num_generated += generation.num_tokens
            if generation.stopped_by != following:  # at its length, at the end of the turn
                ctx.truncate(ctx.position - isinstance(generation.stopped_by, int)).append(following)
            end = hole.end() + len(following)
            text += fixed + values[hole[1]] + following
            session.send(fixed + values[hole[1]] + following)
        text += template[end:]
        session.send(template[end:])
        return {"text": text, "values": values, "num_generated": num_generated}
