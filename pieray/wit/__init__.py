"""The handler API as data: `pieray.wit` read once.

The WIT file is the one place where handlers are declared.  The host's codecs and its checks of components, the
language SDKs and `docs/api.md` are made from what `api` gives.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WIT_FOLDER = Path(__file__).resolve().parent
WIT_FILE = WIT_FOLDER / "pieray.wit"


@dataclass(frozen=True, slots=True)
class Function:
    """A function of an interface.  Types are WIT text; `ok` None: no value; `is_fallible`: `result<ok, error>`."""

    name: str
    params: tuple[tuple[str, str], ...]
    ok: str | None
    is_fallible: bool
    doc: str


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of handlers."""

    name: str
    doc: str
    functions: tuple[Function, ...]


@dataclass(frozen=True, slots=True)
class Api:
    """The package: `enums` map a name to its cases, in order."""

    package: str
    version: str
    doc: str
    enums: dict[str, tuple[str, ...]]
    interfaces: tuple[Interface, ...]


@functools.cache
def api() -> Api:
    """The handler API of `pieray.wit`."""
    return parse(WIT_FILE.read_text(encoding="utf-8"))


def parse(text: str) -> Api:
    """The API that a WIT text declares.

    Reads what the handler API is written in: one package, interfaces of functions over flat types, enums,
    `result<T, error>`.  Raises ValueError with the line of anything else.
    """
    package = re.search(r"^package (\S+)@(\S+);", text, re.M)
    if package is None:
        raise ValueError("a WIT file begins with `package name@version;`")
    interfaces = []
    enums: dict[str, tuple[str, ...]] = {}
    for doc, name, body in _blocks(text, "interface"):
        if name == "types":
            for _, enum, cases in _blocks(body, "enum"):
                bare = re.sub(r"///.*", "", cases)
                enums[enum] = tuple(case.strip() for case in bare.split(",") if case.strip())
        else:
            interfaces.append(Interface(name, doc, tuple(_functions(body))))
    intro = _doc(text[: package.start()])
    return Api(package[1], package[2], intro, enums, tuple(interfaces))


def _blocks(text: str, keyword: str) -> Iterator[tuple[str, str, str]]:
    """(doc, name, body) of each `keyword name { body }`; its end is a brace on the same line, or indented as it."""
    pattern = rf"((?:^[ \t]*///[^\n]*\n)*)^([ \t]*){keyword} ([a-z0-9-]+) \{{(?:([^\n]*)\}}|\n(.*?)^\2\}})"
    for found in re.finditer(pattern, text, re.M | re.S):
        yield _doc(found[1]), found[3], found[4] or found[5] or ""


def _functions(body: str) -> Iterator[Function]:
    pattern = r"((?:^[ \t]*///.*\n)*)^[ \t]*([a-z0-9-]+): func\(([^()]*)\)(?:\s*->\s*([^;]+))?;"
    for found in re.finditer(pattern, body, re.M):
        params = re.findall(r"([a-z0-9-]+):\s*([a-z0-9]+(?:-[a-z0-9]+)*(?:<[^>]*>)?)", found[3])
        result = None if found[4] is None else " ".join(found[4].split())
        fallible = None if result is None else re.fullmatch(r"result<(.*), error>", result)
        ok = result if fallible is None else (None if fallible[1] == "_" else fallible[1])
        yield Function(found[2], tuple(params), ok, fallible is not None, _doc(found[1]))


def _doc(comment: str) -> str:
    return "\n".join(re.sub(r"^\s*/// ?", "", line) for line in comment.splitlines() if "///" in line)
