"""docs/architecture.md shows what each room holds, from top to bottom, and nothing imports what is above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("actors", "kernels")
"""Rooms of the package that lie beside `pieray/` in the repository."""


def tree() -> list[tuple[int, str]]:
    """Depth and name of what the tree in the documentation shows, in order."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"^## Rooms\n.*?^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None, "docs/architecture.md has a section Rooms with the tree"
    lines = [re.match(r"( *)([\w./]+)", line) for line in block[1].splitlines()]
    return [(len(line[1]) // 2, line[2]) for line in lines if line is not None]


ROOMS = [name.removesuffix("/").removesuffix(".py") for depth, name in tree() if depth == 0]


def files_of(room: str) -> Iterator[Path]:
    folder = ROOT / room if room in OUTSIDE else ROOT / "pieray" / room
    yield from sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported_rooms(path: Path) -> Iterator[tuple[str, str]]:
    """Rooms that a file imports, wherever in it, for types alone too; each with the line.  `import pieray` itself, for
    the version, is of none."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "pieray":
            names = [f"pieray.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
        for name in names:
            if name.startswith("pieray."):
                yield name.split(".")[1], f"line {node.lineno}: {name}"


def test_the_tree_shows_every_room() -> None:
    there = {path.name + "/" * path.is_dir() for path in (ROOT / "pieray").iterdir()}
    there = {name for name in there if name.endswith((".py", "/")) and not name.startswith("__")}
    there |= {f"{name}/" for name in OUTSIDE}
    shown = [name for depth, name in tree() if depth == 0]
    assert sorted(shown) == sorted(there)


def test_the_tree_shows_the_rooms_of_the_host() -> None:
    there = {f"{path.name}/" for path in (ROOT / "pieray" / "host").iterdir() if (path / "__init__.py").exists()}
    names = tree()
    start = names.index((0, "host/"))
    end = next(at for at in range(start + 1, len(names)) if names[at][0] == 0)
    assert sorted(name for _, name in names[start + 1 : end]) == sorted(there)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    below = {room, *ROOMS[ROOMS.index(room) + 1 :]}
    wrong = [
        f"{path.relative_to(ROOT)}, {where}"
        for path in files_of(room)
        for name, where in imported_rooms(path)
        if name in ROOMS and name not in below
    ]
    assert not wrong


def test_a_room_is_a_package_that_says_what_it_holds() -> None:
    for room in ROOMS:
        folder = ROOT / room if room in OUTSIDE else ROOT / "pieray" / room
        if folder.is_dir():
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder
