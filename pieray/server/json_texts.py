"""JSON texts: written, and those of any size parsed so that other threads go on, and bounded in what they may make.

Python's own parser is one call of C, which holds the interpreter's lock for as long as it takes: seconds for 8 MiB of
small things.  Its scanner in Python, which the standard library has too, lets others run every few milliseconds; it is
used for what is large.  Texts in it are still parsed by C, at a gigabyte a second.
"""

from __future__ import annotations

import json
import json.decoder
import json.scanner
import math
from collections.abc import Callable
from typing import Any, NoReturn

INLINE_BYTES = 64 << 10
"""A shorter text is parsed by C, in less than 3 ms."""
MOST_VALUES = 1 << 19
"""Of a larger text: numbers, texts, lists, objects and all else."""
MOST_GROUPS = 1 << 16
"""Lists and objects of those; to look through more of them for garbage would stop all threads for too long."""
MOST_MEMBERS = 1 << 17
"""Of all objects together: to let go of more of them stops all threads for too long, too."""
MOST_DEPTH = 64
"""Of lists and objects in each other, in a larger text."""


def loaded(text: str | bytes) -> Any:
    """A JSON text.  Raises ValueError, also for numbers that are none (NaN) or too large (1e999), and for more values
    than there may be; RecursionError."""
    if len(text) <= INLINE_BYTES:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    return _Decoder().decode(text)


def encoded(value: object) -> bytes:
    """JSON.  Halves of surrogate pairs, which a program may have sent, are no UTF-8 and stay escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


class _Decoder(json.JSONDecoder):
    """For one text."""

    def __init__(self) -> None:
        super().__init__(parse_constant=_refuse_constant, parse_float=_finite)
        self._num_values = self._num_groups = self._num_members = self._depth = 0
        self.parse_object: Any = self._object
        self.parse_array: Any = self._array
        self.scan_once: Any = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]

    def _object(self, begin: Any, strict: bool, _: Any, hook: Any, pairs_hook: Any, memo: Any) -> Any:
        parse = json.decoder.JSONObject  # type: ignore[attr-defined]
        return self._group(lambda: parse(begin, strict, self._member, hook, pairs_hook, memo))

    def _array(self, begin: Any, _: Any) -> Any:
        return self._group(lambda: json.decoder.JSONArray(begin, self._value))  # type: ignore[attr-defined]

    def _group(self, parse: Callable[[], Any]) -> Any:
        self._num_groups += 1
        if self._num_groups > MOST_GROUPS:
            raise ValueError(f"it has more than {MOST_GROUPS} lists and objects, and that is the limit")
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
        found = parse()
        self._depth -= 1
        return found

    def _member(self, text: str, at: int) -> Any:
        self._num_members += 1
        if self._num_members > MOST_MEMBERS:
            raise ValueError(f"its objects have more than {MOST_MEMBERS} members, and that is the limit")
        return self._value(text, at)

    def _value(self, text: str, at: int) -> Any:
        self._num_values += 1
        if self._num_values > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES} values, and that is the limit")
        return self.scan_once(text, at)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    found = float(digits)
    if math.isinf(found):
        raise ValueError(f"{digits[:40]} is too large a number")
    return found
