"""The shelf: each inferlet is listed with its origin, runs without arguments, and does what its README types."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pieray
from pieray.cli import engines
from pieray.cli.app import app
from pieray.cluster.up_state import UpState
from pieray.programs.sources import embedded_inferlets, inferlets_folder

PAPER = (
    "text-completion", "tree-of-thought", "recursion-of-thought", "graph-of-thought", "skeleton-of-thought",
    "prefix-caching", "modular-caching", "ebnf-decoding", "beam-search", "watermarking", "output-validation",
    "speculative-decoding", "jacobi-decoding", "attention-sink", "windowed-attention", "hierarchical-attention",
    "agent-react", "agent-codeact", "agent-swarm",
)  # fmt: skip
SHELF = embedded_inferlets()
NEEDS_MORE = {
    "approval": "a person",
    "chat": "a person",
    "completion-c": "a prompt",
    "completion-js": "to be built",
    "completion-rust": "a prompt",
    "describe-image": "a model that sees",
    "file-summary": "a file",
    "http-fetch": "an address",
    "mcp-tools": "a server of tools",
    "openai-embeddings": "a request",
    "openai-generate": "a request",
}
"""What is no use without arguments, and what it needs; all others run without any."""
NOT_TYPED = {
    "pieray up": "the engine of the tests is up",
    "pieray build": "building is tested elsewhere",
    "completion-js": "it is to be built first",
    "--interactive": "it waits for a person",
    "adapter.safetensors": "pieray comes with no adapter",
    "people.txt": "a file of yours",
    "photo.jpg": "a model that sees",
    "http_hosts": "the network",
    "--mcp": "a path from the repository's root",
    "--role": "two that wait for each other",
}


class Borrowed:
    """The tests' engine, as a handle that a command may close."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None: ...


@pytest.fixture
def typing(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, where `pieray` finds the tests' engine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "find_up", lambda _: (UpState("pieray", "local"), Borrowed(engine)))
    for name in ("connect", "start"):
        monkeypatch.setattr(pieray, name, lambda *_, **__: Borrowed(engine))
    monkeypatch.setattr(engines, "start_own", lambda *_: Borrowed(engine))


def commands(name: str) -> list[str]:
    """What the README of an inferlet types."""
    text = (inferlets_folder() / name / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^    (pieray .*?)(?:\s+#.*)?$", text, re.M)


def test_the_papers_nineteen_are_there_by_name_and_all_have_a_line_and_most_an_origin() -> None:
    assert set(PAPER) <= set(SHELF)
    assert all(one.description for one in SHELF.values())
    without = {name for name, one in SHELF.items() if not one.origin}
    assert not without & set(PAPER)
    assert len(without) <= len(SHELF) // 3, without


def test_most_are_read_in_two_minutes() -> None:
    lines = {path.parent.name: len(path.read_text().splitlines()) for path in inferlets_folder().glob("*/main.py")}
    long = {name: count for name, count in lines.items() if count > 60}
    assert len(long) <= len(lines) // 4, long


def test_pieray_inferlets_shows_what_each_does_and_where_it_comes_from() -> None:
    done = CliRunner().invoke(app, ["inferlets"])
    assert done.exit_code == 0
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    shown = {row[0]: row for row in rows if row[0] in SHELF}
    assert set(shown) == set(SHELF)
    for name, one in SHELF.items():
        assert shown[name][3:5] == [one.description, one.origin or shown[name][4]]


@pytest.mark.library
@pytest.mark.parametrize("name", sorted(set(SHELF) - set(NEEDS_MORE)))
def test_it_shows_something_without_arguments(typing: None, name: str) -> None:
    done = CliRunner().invoke(app, ["run", name])
    assert done.exit_code == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.strip()


@pytest.mark.library
@pytest.mark.parametrize("name", sorted(SHELF))
def test_what_its_readme_types_runs_as_written(typing: None, name: str) -> None:
    assert commands(name), "a README shows how to run it"
    for line in commands(name):
        if any(word in line for word in NOT_TYPED):
            continue
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), line


def test_nothing_in_the_engine_knows_an_inferlets_name() -> None:
    """But for those that the HTTP door is made of."""
    names = {name for name in SHELF if "-" in name and not name.startswith("openai-")}
    package = Path(pieray.__file__).parent
    knows = [
        (path.relative_to(package).as_posix(), node.value)
        for path in package.rglob("*.py")
        if "inferlets" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
    assert knows == []
