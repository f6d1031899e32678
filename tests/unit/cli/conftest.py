"""The real command line on a fake engine: no Ray, no wasm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, Outcome
from typer.testing import CliRunner

from pieray.cli import engines
from pieray.cluster.up_state import UpState


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    """What the command line starts and finds; set its fields to choose what happens."""
    fake = FakeEngine()

    def start_own(address: str | None, settings: dict[str, Any], show: Any) -> Any:
        show("starting")
        fake.start_settings = {"address": address, **settings}
        return fake

    def connect(address: str, namespace: str) -> Any:
        fake.connected_to.append((address, namespace))
        return fake

    monkeypatch.setattr(engines, "start_own", start_own)
    monkeypatch.setattr(engines, "connect", connect)
    monkeypatch.setenv("PIERAY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return fake


@pytest.fixture
def is_up(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> UpState:
    """As if `pieray up` had been here."""
    state = UpState("pieray", "10.0.0.1:6379")
    monkeypatch.setattr(engines, "find_up", lambda namespace: (state, engine) if namespace == "pieray" else None)
    return state


@pytest.fixture
def call() -> Callable[..., Outcome]:
    """Call the command line with words; its output is captured."""
    from pieray.cli.app import app

    def run(*words: str, input: str | None = None) -> Outcome:
        done = CliRunner().invoke(app, list(words), input=input)
        return Outcome(done.exit_code, done.stdout, done.stderr)

    return run
