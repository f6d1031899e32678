"""Fields of requests: what becomes of each, or why it is refused; what no table names is refused too."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pieray.server.problems import BadField

Take: TypeAlias = Callable[[str, Any], dict[str, Any]]
"""From a field's name and value to arguments of the inferlet; raises BadField."""

MOST_GUESSED = 64
"""Characters of an unknown field's name that is compared with those that there are."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request.  Without `take` it is refused, but for the `neutral` values, which ask for nothing."""

    name: str
    source: str
    note: str
    take: Take | None = None
    neutral: tuple[Any, ...] = ()
    is_doors: bool = False
    """It is for the door itself, not for the inferlet."""

    @property
    def works(self) -> bool:
        return self.take is not None

    def read(self, value: Any) -> dict[str, Any]:
        """The arguments that the value stands for."""
        if self.take is not None:
            return self.take(self.name, value)
        if any(type(value) is type(one) and value == one for one in self.neutral):
            return {}
        raise BadField(self.name, f"is not served here: {self.note}", code="unsupported_field")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for."""

    arguments: dict[str, Any]
    """Of the inferlet."""
    door: dict[str, Any] = field(default_factory=dict)
    """What is for the door: model, stream, include_usage, priority, ..."""

    @property
    def is_stream(self) -> bool:
        return bool(self.door.get("stream"))

    @property
    def labels(self) -> dict[str, str]:
        """What the log tells of the request."""
        names = ("user", "safety_identifier", "prompt_cache_key", "session_id", "request_id")
        return {name: self.door[name] for name in names if name in self.door}


def read_fields(route: str, body: Mapping[str, Any], fields: tuple[Field, ...]) -> Asked:
    """What a request asks for.  Raises BadField."""
    asked, from_field = Asked({}), dict[str, str]()
    by_name = {one.name: one for one in fields}
    for name, value in body.items():
        known = by_name.get(name)
        if known is None:
            near = difflib.get_close_matches(name, by_name, n=1) if len(name) <= MOST_GUESSED else []
            hint = f"; did you mean {near[0]}?" if near else ""
            raise BadField(name, f"is not a field of {route}{hint}", code="unknown_field")
        if value is None:
            continue
        for argument, found in known.read(value).items():
            into = asked.door if known.is_doors else asked.arguments
            if argument == "told":  # what the answer repeats
                into.setdefault(argument, {}).update(found)
                continue
            if argument in into and into[argument] != found:
                raise BadField(name, f"and {from_field[argument]} ask for different things: give one of them")
            into[argument], from_field[argument] = found, name
    return asked


def refused(name: str, source: str, note: str, *neutral: Any) -> Field:
    return Field(name, source, note, neutral=neutral)
