"""`pieray install`, `uninstall`, and running what is installed, on a fake engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import FakeEngine, Outcome

from pieray.cluster.up_state import UpState
from pieray.programs.sources import ProgramSource

Call = Callable[..., Outcome]
NOTES = ProgramSource("notes", "notes.py", source="def main(text: str, n: int = 0): ...", version="1.0.0")


def test_a_file_is_installed_listed_and_forgotten(
    engine: FakeEngine, call: Call, is_up: UpState, tmp_path: Path
) -> None:
    path = tmp_path / "notes.py"
    path.write_text('# /// inferlet\n# version = "1.0.0"\n# description = "Keeps notes"\n# ///\ndef main(): ...\n')
    done = call("install", str(path))
    assert (done.exit_code, done.stderr[:31]) == (0, "pieray: installed notes@1.0.0, ")
    assert json.loads(call("install", str(path), "--json").stdout)["version"] == "1.0.0"
    rows = json.loads(call("inferlets", "--json").stdout)
    assert rows[-1] == {"name": "notes", "version": "1.0.0", "description": "Keeps notes", "where": "installed"}
    assert {row["where"] for row in rows[:-1]} == {"embedded"}
    assert call("uninstall", "notes").stderr == "pieray: uninstalled notes@1.0.0\n"
    assert call("uninstall", "notes").exit_code == 2


def test_what_is_no_program_is_refused_before_an_engine_is_asked(engine: FakeEngine, call: Call) -> None:
    done = call("install", "no-such-thing")
    assert done.exit_code == 2
    assert "no-such-thing" in done.stderr


def test_an_installed_program_runs_by_name_with_its_parameters(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    engine.installed["notes"] = NOTES
    assert call("run", "notes", "--", "--text", "12", "--n", "12").exit_code == 0
    assert engine.launches[-1]["arguments"] == {"text": "12", "n": 12}


@pytest.mark.parametrize("words", [("notes",), ("notes", "--set", "actor_pool=2"), ("notes", "--address", "local")])
def test_an_unknown_name_is_usage_and_needs_no_engine_of_its_own(
    engine: FakeEngine, call: Call, words: tuple[str, ...]
) -> None:
    done = call("run", *words)
    assert done.exit_code == 2
    assert engine.start_settings == {}


def test_a_name_that_the_running_engine_does_not_know_exits_2(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    done = call("run", "notes")
    assert (done.exit_code, engine.launches) == (2, [])
    assert "'notes'" in done.stderr


def test_a_path_is_local_whatever_is_installed(
    engine: FakeEngine, call: Call, is_up: UpState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.installed["notes"] = NOTES
    (tmp_path / "notes.py").write_text("def main(n: str): ...\n")
    monkeypatch.chdir(tmp_path)
    assert call("run", "notes.py", "--", "--n", "3").exit_code == 0
    assert engine.launches[-1]["arguments"] == {"n": "3"}
