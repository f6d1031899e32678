"""Python inferlets: nothing to build, but a syntax to check.

The guest runs CPython 3.14: what this interpreter refuses may be newer syntax, what it takes runs there too.
"""

from __future__ import annotations

import ast
from pathlib import Path

from pieray.errors import InvalidRequest
from pieray.programs.sources import read_source


def build(entry: Path, _target: Path) -> None:
    """Check the source; raises InvalidRequest with line and reason."""
    check(read_source(entry), entry.name)


def check(source: str, filename: str) -> ast.Module:
    """The parsed source; raises InvalidRequest."""
    try:
        tree = ast.parse(source, filename)
    except SyntaxError as error:
        raise InvalidRequest(f"{filename}, line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidRequest(f"{filename} cannot be parsed: {error}") from None
    if not any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == "main" for n in tree.body):
        raise InvalidRequest(f"{filename} defines no main(): an inferlet is `async def main(prompt: str, ...)`")
    return tree
