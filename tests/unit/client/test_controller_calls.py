"""Calls to a Controller that answers, is silent, freezes, dies: short deadlines, and no launch twice or late."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from pieray.client import controller_calls as controllercalls
from pieray.client.controller_calls import ControllerCalls
from pieray.errors import ActorGone, EngineError, NoAnswer, NotFound, Stalled


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllercalls, "SILENT_S", 0.1)
    monkeypatch.setattr(controllercalls, "PING_S", 0.2)


class FakeController:
    """Answers each method with the next thing of its script: a value, an error, or seconds that it takes."""

    def __init__(self, **script: list[Any]) -> None:
        self.script = script
        self.calls: list[tuple[Any, ...]] = []
        self.clock_offset_s = 1000.0
        self.is_frozen = False

    def begin(self, method: str, *args: Any) -> Callable[[float], Any]:
        self.calls.append((method, *args))
        began = time.monotonic()
        steps = self.script.get(method, [])
        takes_s = steps.pop(0) if steps and isinstance(steps[0], float) else 0.0

        def answer(timeout_s: float) -> Any:
            left_s = began + takes_s - time.monotonic()
            if self.is_frozen or left_s > timeout_s:
                time.sleep(max(0.0, timeout_s))
                raise NoAnswer("no answer")
            time.sleep(max(0.0, left_s))
            if method == "ping":
                return time.monotonic() + self.clock_offset_s
            found = steps.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        return answer

    def methods(self) -> list[str]:
        return [call[0] for call in self.calls]


def test_answers_and_errors_come_through() -> None:
    fake = FakeController(ps=[[1]], kill=[NotFound("none")], status=[ActorGone("dead")])
    calls = ControllerCalls(fake.begin)
    assert calls.ask("ps", timeout_s=1) == [1]
    with pytest.raises(NotFound):
        calls.ask("kill", "x", timeout_s=1)
    with pytest.raises(ActorGone):
        calls.ask("status", timeout_s=1)


def test_a_long_call_of_a_controller_that_lives_is_waited_for() -> None:
    fake = FakeController(load=[0.5, "loaded"])
    assert ControllerCalls(fake.begin).ask("load", timeout_s=30) == "loaded"
    assert fake.methods().count("ping") >= 2


def test_a_long_call_has_its_deadline_all_the_same() -> None:
    fake = FakeController(load=[60.0, "loaded"])
    with pytest.raises(NoAnswer, match=r"did not answer load within 0\.3 s"):
        ControllerCalls(fake.begin).ask("load", timeout_s=0.3)


@pytest.mark.parametrize("method", ["ps", "launch"])
def test_a_frozen_controller_is_told_within_seconds(method: str) -> None:
    fake = FakeController()
    fake.is_frozen = True
    calls = ControllerCalls(fake.begin)
    began = time.monotonic()
    with pytest.raises(NoAnswer, match="the engine's Controller does not answer"):
        calls.launch(b"", 60) if method == "launch" else calls.ask(method, timeout_s=60)
    assert time.monotonic() - began < 20


def test_a_launch_bears_the_controllers_own_times() -> None:
    fake = FakeController(launch=["endpoint"])
    before = time.monotonic()
    assert ControllerCalls(fake.begin).launch(b"frame", 60) == "endpoint"
    (_, frame, sent_at, deadline) = fake.calls[-1]
    assert frame == b"frame"
    assert before + 999 <= sent_at <= time.monotonic() + 1000  # never ahead of the Controller's clock
    assert deadline - sent_at == pytest.approx(60, abs=0.1)


def test_a_launch_that_a_frozen_controller_has_not_carried_out_is_sent_again() -> None:
    fake = FakeController(launch=[Stalled("frozen"), Stalled("frozen"), "endpoint"])
    assert ControllerCalls(fake.begin).launch(b"", 60) == "endpoint"
    assert fake.methods().count("launch") == 3


def test_a_launch_is_not_sent_again_past_its_deadline_or_for_any_other_error() -> None:
    fake = FakeController(launch=[0.3, Stalled("frozen"), "endpoint"])
    with pytest.raises(Stalled):
        ControllerCalls(fake.begin).launch(b"", 0.25)
    fake = FakeController(launch=[EngineError("full"), "endpoint"])
    with pytest.raises(EngineError, match="full"):
        ControllerCalls(fake.begin).launch(b"", 60)


def test_who_is_told_waits_for_nothing() -> None:
    def gone(*_: Any) -> Any:
        raise ActorGone("dead")

    ControllerCalls(gone).tell("kill", "x", "y")
