"""The pages of docs/guide, followed word by word in an empty folder: files written, commands run, output compared.

A fenced block whose info string is a language and a file name is that file.  A `sh` block is typed, line by line; a
`text` block behind it is what it prints (a line `...` stands for any lines).  A `python` block without a name is run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pieray
from pieray.cli import engines
from pieray.cli.app import app
from pieray.cluster.up_state import UpState
from pieray.programs.sources import ProgramSource

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide"
PAGES = sorted(GUIDE.glob("[0-9]-*.md"))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)


FORGET = ProgramSource(
    "forget",
    "forget.py",
    """
from inferlet import kv, runtime

async def main():
    for export in await kv.list_exports(""):
        if export.owner == runtime.user():
            await kv.unexport(export.name, export.access)
""",
)


class Borrowed:
    """The tests' engine, as a handle that others may close."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None: ...

    def __enter__(self) -> Borrowed:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def at_home(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, and an engine that runs already, as after `pieray up`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "find_up", lambda _: (UpState("pieray", "local"), Borrowed(engine)))
    monkeypatch.setattr(engines, "start_own", lambda *_: Borrowed(engine))
    monkeypatch.setattr(pieray, "connect", lambda *_, **__: Borrowed(engine))
    monkeypatch.setattr(pieray, "start", lambda *_, **__: Borrowed(engine))
    yield tmp_path
    for program in engine.programs():
        engine.uninstall(program["name"])
    engine.launch(FORGET).result(timeout=60)


def typed(line: str) -> str:
    """What a command prints."""
    words = shlex.split(line)
    assert words[0] == "pieray", f"the guide may only type pieray: {line}"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def is_as_told(printed: str, told: str) -> bool:
    parts = [re.escape(part) for part in re.split(r"^\.\.\.$\n?", told.strip() + "\n", flags=re.M)]
    return re.fullmatch(r"(?:.*\n)*?".join(parts), printed.strip() + "\n") is not None


def test_there_are_five_pages() -> None:
    assert [page.name[0] for page in PAGES] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = ""
    num_told = 0
    for info, body in FENCE.findall(page.read_text(encoding="utf-8")):
        language, _, name = info.partition(" ")
        if name:
            file = at_home / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(body, encoding="utf-8")
        elif language == "sh":
            printed = "".join(typed(line) for line in body.splitlines() if not line.startswith("#"))
        elif language == "python":
            capsys.readouterr()
            exec(compile(body, page.name, "exec"), {"__name__": "guide"})
            printed = capsys.readouterr().out
        elif language == "text":
            assert is_as_told(printed, body), f"{page.name} tells\n{body}\nand what came is\n{printed}"
            num_told += 1
    assert num_told, "a page shows at least one output"
