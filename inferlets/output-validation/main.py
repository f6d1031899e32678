"""Validate what is generated, while it is: a draft that breaks the rules is left there, and another one is drawn."""

import json
from dataclasses import dataclass
from typing import Any

from inferlet import Context, Grammar, Mismatch, Token
from inferlet.structured import parse_as


@dataclass
class Person:
    """What the output has to be."""

    name: str
    age: int
    city: str


async def main(
    text: str = "In Vari lives Mavi, aged 89.",
    max_tries: int = 16,
    max_tokens: int = 64,
    temperature: float = 1.5,
    seed: int = 0,
) -> dict[str, Any]:
    """A person whose words stand in the text; `value` is None if no try was valid.  The prompt is computed once."""
    rejected: list[dict[str, str]] = []
    form = await Grammar.of(Person)
    async with Context.of(f"Extract JSON: {text}", chat=True) as ctx:
        await ctx.flush()
        for number in range(max_tries):
            draft, problem = await attempt(ctx.fork(), form.fork(), max_tokens, temperature, seed + number)
            value = None
            if not problem:
                value, problem = checked(draft, text)
            if value is not None:
                return {"value": value, "num_tries": number + 1, "rejected": rejected}
            rejected.append({"draft": draft, "problem": problem})
    return {"value": None, "num_tries": max_tries, "rejected": rejected}


async def attempt(ctx: Context, form: Any, max_tokens: int, temperature: float, seed: int) -> tuple[str, str]:
    """A draft, and what is wrong with its form: nobody waits for the rest of one that is no JSON any more."""

    def follows(token: Token) -> bool:
        return form.accept([token.id]) == 1

    async with ctx:
        drawn = ctx.generate(max_tokens, temperature=temperature, seed=seed, on_token=follows)
        text = await drawn
    is_whole = isinstance(drawn.stopped_by, int) and form.is_complete
    return text, "" if is_whole else f"no {Person.__name__} in JSON from {text[-12:]!r} on"


def checked(draft: str, text: str) -> tuple[dict[str, Any] | None, str]:
    """The value, or what is wrong with its content."""
    try:
        person = parse_as(Person, json.loads(draft))
    except (Mismatch, ValueError) as error:
        return None, str(error)
    said = [word for word in (person.name, person.city, str(person.age)) if word not in text or not word]
    return (None, f"not in the text: {said}") if said else (vars(person), "")
