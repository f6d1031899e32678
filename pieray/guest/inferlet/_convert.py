"""Values of the WIT's types from what a guest gives.  Each raises InvalidRequest, naming the value, for any other."""

from __future__ import annotations

import json
import re
import reprlib
from array import array
from collections.abc import Iterable
from typing import Any, TypeVar

from .errors import InvalidRequest

T = TypeVar("T")

MAX_DEPTH = 500
"""Of JSON: the stack of the component ends the guest at less than twice as much, before Python notices."""
CONTAINERS = (dict, list, tuple)


def u32(name: str, value: Any) -> int:
    """An integer from 0 to 2^32 - 1."""
    return integer(name, value, 0, 0xFFFFFFFF)


def s32(name: str, value: Any) -> int:
    """An integer from -2^31 to 2^31 - 1."""
    return integer(name, value, -0x80000000, 0x7FFFFFFF)


def u64(name: str, value: Any) -> int:
    """An integer from 0 to 2^64 - 1."""
    return integer(name, value, 0, 0xFFFFFFFFFFFFFFFF)


def integer(name: str, value: Any, low: int, high: int) -> int:
    """An integer from `low` to `high`."""
    if not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} is an integer from {low} to {high}; given {shown(value)}")
    return int(value)


def number(name: str, value: Any, low: float = float("-inf"), high: float = float("inf")) -> float:
    """A number from `low` to `high`, as a float: no NaN, nothing that float cannot hold."""
    if value.__class__ is not float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidRequest(f"{name} is a number; given {shown(value)}")
        try:
            value = float(value)
        except OverflowError:
            raise InvalidRequest(f"{name} is from {low} to {high}; given {shown(value)}") from None
    if not low <= value <= high:
        raise InvalidRequest(f"{name} is from {low} to {high}; given {value}")
    return float(value)


def milliseconds(name: str, seconds: Any, most: int) -> int:
    """A time from 0 on, at most `most` milliseconds, from one in seconds."""
    return int(number(name, seconds, 0, most / 1000) * 1000)


def f32(name: str, value: Any) -> float:
    """A number; NaN and infinities are for the handler to judge."""
    if value.__class__ is float:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise InvalidRequest(f"{name} is a number that float32 holds; given {shown(value)}")


def boolean(name: str, value: Any) -> bool:
    """True or False itself."""
    if value is True or value is False:
        return value
    raise InvalidRequest(f"{name} is True or False; given {shown(value)}")


def text(name: str, value: Any) -> str:
    """Text that UTF-8 can hold: without lone surrogates."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is text; given {shown(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{name} is not Unicode text: {error}") from None
    return value


def printable(value: str) -> str:
    """Text that UTF-8 can hold, for who only reads it: lone surrogates are written as escapes."""
    return value if value.isascii() else value.encode(errors="backslashreplace").decode()


def u32s(name: str, values: Any) -> list[int]:
    """A list of integers from 0 to 2^32 - 1."""
    given = values if values.__class__ is list else items(name, values, "integers")
    try:
        return array("I", given).tolist()
    except (TypeError, OverflowError, ValueError):
        return [u32(name, value) for value in given]  # says which


def f32s(name: str, values: Any) -> list[float]:
    """A list of numbers."""
    given = values if values.__class__ is list else items(name, values, "numbers")
    try:
        return array("f", given).tolist()
    except (TypeError, OverflowError, ValueError):
        return [f32(name, value) for value in given]  # says which


def texts(name: str, values: Any) -> list[str]:
    """A list of texts."""
    return [text(name, value) for value in items(name, values, "texts")]


def items(name: str, values: Any, what: str) -> list[Any]:
    """What an iterable gives; `what` it should be."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidRequest(f"{name} are {what}; given {shown(values)}")
    return list(values)


def enum(name: str, value: Any, kind: Any) -> None:
    """A case of an enum of the WIT."""
    if not isinstance(value, kind):
        raise InvalidRequest(f"{name} is a case of {kind.__name__}; given {shown(value)}")


def instance(name: str, value: Any, kind: type[T], *others: type[Any]) -> T:
    """An object of one of these classes of the SDK."""
    if not isinstance(value, (kind, *others)):
        kinds = " or ".join(one.__name__ for one in (kind, *others))
        raise InvalidRequest(f"{name} is a {kinds}; given {shown(value)}")
    return value  # type: ignore[return-value]  # of `kind`, or of what the caller takes besides


def instances(name: str, values: Any, kind: type[T]) -> list[T]:
    """A list of objects of a class of the SDK."""
    return [instance(f"each of {name}", value, kind) for value in items(name, values, f"{kind.__name__} objects")]


def to_json(name: str, value: Any, *, is_ascii: bool = False) -> str:
    """`dump` of a value."""
    try:
        return dump(value, is_ascii=is_ascii)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{name} is JSON: {error}") from None


def dump(value: Any, *, is_ascii: bool = False) -> str:
    """JSON (RFC 8259) that UTF-8 can hold: lone surrogates are escapes in it, so that they come back as they were.

    Raises TypeError or ValueError for what JSON cannot hold, NaN and infinities too, and for what nests deeper than
    MAX_DEPTH.
    """
    level = {id(value): value} if isinstance(value, CONTAINERS) else {}
    for _ in range(MAX_DEPTH):
        if not level:
            break
        inner = (item for one in level.values() for item in (one.values() if isinstance(one, dict) else one))
        level = {id(item): item for item in inner if isinstance(item, CONTAINERS)}
    else:
        raise ValueError(f"it nests deeper than {MAX_DEPTH}, or contains itself")
    found = json.dumps(value, ensure_ascii=is_ascii, allow_nan=False)
    if not found.isascii():
        try:
            found.encode()
        except UnicodeEncodeError:
            return json.dumps(value, allow_nan=False)
    return found


def load(given: str | bytes) -> Any:
    """The value of a JSON text.  Raises ValueError for what is none, and for what nests deeper than MAX_DEPTH."""
    found = given if isinstance(given, str) else given.decode(json.detect_encoding(given), "surrogatepass")
    if found.count("[") + found.count("{") > MAX_DEPTH:
        depth = 0
        for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[][{}]', found, re.DOTALL):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
            if depth > MAX_DEPTH:
                raise ValueError(f"the JSON nests deeper than {MAX_DEPTH}")
    return json.loads(found)


def shown(value: Any) -> str:
    """The value, for a message: cut short, and whatever its `repr` does."""
    try:
        return _short.repr(value)
    except Exception as error:
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"


_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxother = _short.maxlong = 100
