"""Where the runtime component comes from: built once, found again, rebuilt when what it is made of changes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pieray.errors import EngineError
from pieray.guest import GUEST_ROOT
from pieray.wasm import python_runtime
from pieray.wasm.python_runtime import component_path

#: Stands for componentize-py: notes its call beside the cache, writes the component after a while.
TOOL = """
import os, pathlib, sys, time
arguments = sys.argv
pathlib.Path(os.environ["CALLS"]).open("a").write("call\\n")
assert pathlib.Path("app.py").exists() and pathlib.Path("inferlet/context.py").exists()
assert pathlib.Path("wit/pieray.wit").exists() and arguments[arguments.index("-w") + 1] == "python-runtime"
time.sleep(0.2)
pathlib.Path(arguments[arguments.index("-o") + 1]).write_bytes(b"component")
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and a quick tool; the file has a line per call of it."""
    monkeypatch.setenv("PIERAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setattr(python_runtime, "RUN_TOOL", TOOL)
    return tmp_path / "calls"


def test_it_is_built_once_and_found_again(calls: Path) -> None:
    lines: list[str] = []
    first = component_path(lines.append)
    assert first.read_bytes() == b"component"
    assert component_path(lines.append) == first
    assert calls.read_text() == "call\n"
    assert lines[0] == "building the Python runtime (once, about 20 s) ..."
    assert [path.name for path in first.parent.iterdir() if path.suffix != ".lock"] == [first.name]


def test_several_that_ask_at_once_get_one_build(calls: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(component_path())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert calls.read_text() == "call\n"


def test_other_sources_or_another_tool_make_another_component(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = component_path()
    monkeypatch.setattr(python_runtime, "_tool_version", lambda: "9.9")
    second = component_path()
    sources = python_runtime._sources()
    monkeypatch.setattr(python_runtime, "_sources", lambda: sources | {"inferlet/more.py": b""})
    assert len({first, second, component_path()}) == 3


def test_a_failure_shows_what_the_tool_said(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_runtime, "RUN_TOOL", "raise SystemExit('no such world')")
    with pytest.raises(EngineError, match=r"componentize-py failed with status 1:\nno such world"):
        component_path()
    assert not list(Path(os.environ["PIERAY_CACHE"]).glob("*.wasm"))


def test_the_sources_are_not_written_to(calls: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in GUEST_ROOT.rglob("*") if "__pycache__" not in str(path)}
    component_path()
    assert before == {path: path.stat().st_mtime_ns for path in before}
