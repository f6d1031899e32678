"""Calls of tools that models write as JSON, found in a text that may end within them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

MAX_BLOCKS = 256
"""Calls, well-formed or not, in one reply: what follows the last is content."""

_HALF_WORD = re.compile(r"-|\.|[eE][+-]?|t|tr|tru|f|fa|fal|fals|n|nu|nul")
_ARGUMENTS = ("arguments", "parameters")
IN_BLOCK = frozenset(("name", "id", "type"))
"""Keys of a call without arguments, where tags say that it is one."""


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(number)
    return value


# models write line ends into strings as they are; NaN and infinities could not be handed on
_DECODER = json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=_finite)


def call_of(value: Any, keys: frozenset[str] = frozenset()) -> dict[str, Any] | None:
    """A call from its JSON; without arguments it is one if it has no other keys than these."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {**value["function"], **({"id": value["id"]} if "id" in value else {})}
    if isinstance(value, dict) and isinstance(value.get("function"), str) and "name" not in value:
        value = {**value, "name": value["function"]}  # Llama's, now and then
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    if not any(key in value for key in _ARGUMENTS) and not (keys and keys.issuperset(value)):
        return None
    arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    if isinstance(arguments, str):
        arguments, _, _ = json_at(arguments, skip(arguments, 0))
    if not isinstance(arguments, dict):
        return None
    has_id = isinstance(value.get("id"), str) and value["id"]
    return {"name": value["name"], "arguments": arguments, **({"id": value["id"]} if has_id else {})}


@dataclass(frozen=True, slots=True)
class Found:
    values: list[Any]
    end: int
    is_open: bool
    """The text merely ends within them."""


def objects_at(text: str, start: int) -> Found:
    """The objects at `start`, one after the other or in a list; no values: there is none, or one is broken."""
    place = skip(text, start)
    is_list = text[place : place + 1] == "["
    values: list[Any] = []
    end, place = 0, place + is_list
    while len(values) < MAX_BLOCKS:
        place = skip(text, place, ",;" if values else "")
        if is_list and text[place : place + 1] == "]":
            return Found(values, place + 1, False)
        if place >= len(text):
            return Found(values, end, is_list or not values)
        if text[place] != "{":
            return Found([], 0, False) if is_list or not values else Found(values, end, False)
        value, end, is_open = json_at(text, place)
        if value is None:
            return Found([], 0, is_open)
        values.append(value)
        place = end
    return Found([], 0, False)


def json_at(text: str, start: int) -> tuple[Any, int, bool]:
    """The object at `start`, where it ends (0: there is none), and whether the text merely ends within it."""
    if start >= len(text):
        return None, 0, True
    if text[start] != "{":
        return None, 0, False
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        rest = text[error.pos :].strip()
        is_cut = not rest or _HALF_WORD.fullmatch(rest) is not None
        is_cut = is_cut or "Unterminated string" in error.msg or ("escape" in error.msg and len(rest) < 6)
        return None, 0, is_cut
    except (RecursionError, ValueError):  # too deep; a number of too many digits
        return None, 0, False
    return value, end, False


def skip(text: str, place: int, also: str = "") -> int:
    while place < len(text) and (text[place].isspace() or text[place] in also):
        place += 1
    return place
