"""Many launches at once, and launches by name, on a running engine: what is asked of whom, and what each gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from programs import program
from test_grants_engine import HOLD, SEVEN, SOON, Asked, fresh, until

import pieray
from pieray import LaunchRequest, PierayError, Process, ProgramSource
from pieray.errors import ConfigError, InvalidRequest, NotFound
from pieray.messages import LaunchHere

__all__ = ["fresh"]

DOUBLE = program("async def main(n: int): return 2 * n\n", "double")
BROKEN = program("def main(:\n", "broken")


class Sent:
    """Frames with launches that go out over a handle's links: how many launches each has."""

    def __init__(self, engine: Any) -> None:
        self.sizes: list[int] = []
        (link,) = engine._links.open_links()
        send = link._conn.send

        def noted(messages: Any, **options: Any) -> None:
            if number := sum(isinstance(message, LaunchHere) for message in messages):
                self.sizes.append(number)
            send(messages, **options)

        link._conn.send = noted


def named(version: str, answer: int, name: str = "notes") -> ProgramSource:
    return ProgramSource(name, "notes.py", source=f"def main(): return {answer}\n", version=version)


def test_many_launches_are_one_message_and_each_has_its_outcome(
    fresh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fresh()
    assert engine.launch(SEVEN).result(timeout=SOON) == 7
    asked, sent = Asked(engine, monkeypatch), Sent(engine)
    wanted: list[Any] = [(DOUBLE, {"n": n}) for n in range(20)]
    wanted[3] = LaunchRequest("no-such-program")
    wanted[5] = LaunchRequest(DOUBLE, {"n": object()})
    wanted[7] = LaunchRequest(DOUBLE, {"n": 7}, limits={"pages": 10**9})
    wanted[9] = LaunchRequest(BROKEN)
    outcomes = engine.launch_many(wanted)
    assert len(outcomes) == 20
    errors = {n: type(outcome) for n, outcome in enumerate(outcomes) if isinstance(outcome, PierayError)}
    assert errors == {3: NotFound, 5: InvalidRequest, 7: ConfigError}
    processes = {n: outcome for n, outcome in enumerate(outcomes) if isinstance(outcome, Process)}
    with pytest.raises(PierayError, match="SyntaxError"):
        processes.pop(9).result(timeout=SOON)
    assert {n: process.result(timeout=SOON) for n, process in processes.items()} == {n: 2 * n for n in processes}
    assert len({process.id for process in processes.values()}) == 16
    assert sent.sizes == [17]
    assert set(asked.methods) <= {"resolve", "grant"}
    assert engine.launch_many([]) == []


def test_what_finds_no_granted_place_is_placed_by_the_controller(fresh: Callable[..., Any]) -> None:
    engine = fresh(inferlets_per_actor=8, max_actors=3, ready_guests=2)
    outcomes = engine.launch_many([LaunchRequest(HOLD, attached=True)] * 20)
    assert [type(outcome) for outcome in outcomes] == [Process] * 20
    until(lambda: sum(row["state"] == "running" for row in engine.ps()) == 20)
    for process in outcomes:
        process.send("")
    for process in outcomes:
        process.result(timeout=SOON)


def test_the_twin_for_an_event_loop(fresh: Callable[..., Any]) -> None:
    engine = fresh()

    async def run() -> list[Any]:
        outcomes = await engine.alaunch_many([(DOUBLE, {"n": n}) for n in range(8)])
        return [await outcome for outcome in outcomes]

    assert asyncio.run(run()) == [2 * n for n in range(8)]


def test_a_warm_launch_by_name_asks_nothing_and_a_change_is_seen_at_once(
    fresh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fresh()
    with pieray.connect(namespace=engine.config.namespace) as other:
        other.install(named("1.0.0", 1))
        assert engine.launch("notes").result(timeout=SOON) == 1
        asked = Asked(engine, monkeypatch)
        assert [engine.launch("notes").result(timeout=SOON) for _ in range(5)] == [1] * 5
        assert [p.result(SOON) for p in engine.launch_many([("notes", {}), ("notes@1.0.0", {})])] == [1, 1]
        assert asked.methods == ["resolve"]  # of notes@1.0.0
        other.install(named("1.1.0", 2))
        assert engine.launch("notes").result(timeout=SOON) == 2
        assert engine.launch("notes@1.0.0").result(timeout=SOON) == 1
        other.uninstall("notes")
        with pytest.raises(NotFound):
            engine.launch("notes")
        other.install(named("1.1.0", 3))  # the same version, another program: the old one was uninstalled
        assert engine.launch("notes").result(timeout=SOON) == 3
        asked.methods.clear()
        assert engine.launch("notes").result(timeout=SOON) == 3
        assert asked.methods == []
        with pytest.raises(NotFound):
            engine.launch("notes@1.0.0")
