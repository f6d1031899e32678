"""docs/architecture.md shows what each room holds, from top to bottom, and nothing imports what is above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "pieray" / "host"
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


def rooms_of_the_host() -> list[str]:
    names = tree()
    start = names.index((0, "host/"))
    end = next(at for at in range(start + 1, len(names)) if names[at][0] == 0)
    return [name.removesuffix("/") for _, name in names[start + 1 : end]]


def test_the_tree_shows_the_rooms_of_the_host() -> None:
    there = [path.name for path in HOST.iterdir() if (path / "__init__.py").exists()]
    assert sorted(rooms_of_the_host()) == sorted(there)


def test_the_rooms_and_files_of_the_host_stand_above_each_other() -> None:
    """A room, or a file beside the rooms, imports only what is below: there is an order, for types alone too."""
    rooms = rooms_of_the_host()
    paths = {room: sorted((HOST / room).rglob("*.py")) for room in rooms}
    paths |= {path.stem: [path] for path in HOST.glob("*.py") if path.stem != "__init__"}
    imports = {name: {found for path in files for found in imported_by_host(path)} for name, files in paths.items()}
    order = list(TopologicalSorter({name: found - {name} for name, found in imports.items()}).static_order())
    assert sorted(order) == sorted(paths)  # a circle would have raised
    for at, room in enumerate(rooms):
        assert not imports[room] & set(rooms[:at]), room


def imported_by_host(path: Path) -> Iterator[str]:
    """Rooms and files of the host that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("pieray.host"):
            below = node.module.split(".")[2:]
            yield from below[:1] or [alias.name for alias in node.names]


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
