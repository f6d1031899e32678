"""Structured output: a dataclass becomes a grammar, and what the model writes under it always parses."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from inferlet import Context

Name = Annotated[str, {"pattern": "^[A-Z][a-z]{1,15}$"}]


@dataclass
class Person:
    """What is to be found in the text."""

    name: Name
    age: Annotated[int, {"minimum": 0, "maximum": 150}]
    city: Name


async def main(
    text: str = "In Vari lives Mavi, aged 89.", max_tokens: int = 96, temperature: float = 0.0, seed: int | None = None
) -> dict[str, Any]:
    """The person that `text` tells of."""
    async with Context() as ctx:
        ctx.user(f"Extract JSON: {text}")
        person = await ctx.collect_json(Person, max_tokens, temperature=temperature, seed=seed)
        return asdict(person)
