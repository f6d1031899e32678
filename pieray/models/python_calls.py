"""Calls of tools that models write in Python's syntax (Llama 3.2 and 4, Gemma).  They are read, never run."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

MAX_PYTHON = 65_536
"""Characters of a list of calls."""

_PYTHON_CALL = re.compile(r"\[?\s*[A-Za-z_][\w.]*\s*\(")


def python_calls(text: str, place: int) -> tuple[list[dict[str, Any]], int, bool]:
    """[f(x=1), g(y="a")], or one call without the list, at `place`: the calls, where they end, and whether the text
    merely ends within them.  No calls: there are none, or one is more than a name and literals."""
    if not _PYTHON_CALL.match(text, place):
        is_cut = text[place:].strip() in ("[",) or re.fullmatch(r"\[\s*[A-Za-z_][\w.]*\s*", text[place:]) is not None
        return [], 0, is_cut
    end = _closing(text, place)
    if end == 0:
        return [], 0, len(text) - place <= MAX_PYTHON
    try:
        body = ast.parse(text[place:end].strip(), mode="eval").body
        written = body.elts if isinstance(body, ast.List) else [body]
        return [_python_call(one) for one in written], end, False
    except (SyntaxError, ValueError, MemoryError, RecursionError, TypeError):
        return [], 0, False


def _closing(text: str, place: int) -> int:
    """Behind the bracket that closes the first one from `place` on, outside of strings; 0: there is none."""
    depth, quote, index = 0, "", place
    while index < min(len(text), place + MAX_PYTHON):
        char = text[index]
        if quote:
            index += char == "\\"
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                return index + 1
        index += 1
    return 0


def _python_call(written: ast.expr) -> dict[str, Any]:
    if not isinstance(written, ast.Call) or written.args or any(one.arg is None for one in written.keywords):
        raise ValueError("a call has arguments by name")
    name = ast.unparse(written.func)
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        raise ValueError("a call is of a name")
    arguments = {str(one.arg): _value_of(one.value) for one in written.keywords}
    return {"name": name.removesuffix(".call"), "arguments": arguments}


_NAMES = {"true": True, "false": False, "null": None}


def _value_of(written: ast.expr) -> Any:
    """The value of a literal; `true`, `false` and `null` are known too."""
    if isinstance(written, ast.Name) and written.id in _NAMES:
        return _NAMES[written.id]
    if isinstance(written, ast.List | ast.Tuple):
        return [_value_of(one) for one in written.elts]
    if isinstance(written, ast.Dict):
        return {
            str(ast.literal_eval(key)): _value_of(value)  # type: ignore[arg-type]
            for key, value in zip(written.keys, written.values, strict=True)
        }
    value = ast.literal_eval(written)
    if not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("no JSON value")
    return value
