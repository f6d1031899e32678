"""What the values of a request's fields may be: checks that give the value, or raise BadField with the field's name."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from pieray.server.problems import BadField


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadField(name, f"is true or false; given {shown(value)}")
    return value


def integer(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadField(name, f"is an integer{_range(least, most)}; given {shown(value)}")
    return value


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise BadField(name, f"is a number{_range(least, most)}; given {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise BadField(name, f"is a number that fits in 64 bits; given {shown(value)}") from None


def text(name: str, value: Any, most: int = 1 << 20) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise BadField(name, f"is a text of at most {most} characters; given {shown(value)}")
    return value


def listed(name: str, value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        given = f"{len(value)}" if isinstance(value, list) else shown(value)
        raise BadField(name, f"is a list of at most {most}; given {given}")
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadField(name, f"is an object; given {shown(value)}")
    return value


def tokens(name: str, value: Any, most: int = 1 << 20) -> list[int]:
    return [integer(name, one, 0, (1 << 32) - 1) for one in listed(name, value, most)]


def shown(value: Any) -> str:
    """The beginning of a value, as JSON."""
    found = json.dumps(value, ensure_ascii=True)
    return found if len(found) <= 80 else f"{found[:77]}..."


def _range(least: float, most: float) -> str:
    if least == -math.inf and most == math.inf:
        return ""
    return f" of at least {least}" if most == math.inf else f" from {least} to {most}"


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise BadField(name, f"is one of {', '.join(choices)}; given {shown(value)}")
    return str(value)
