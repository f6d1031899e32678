"""Processes are killed with SIGKILL: everybody who waits gets an answer, the engine comes back, pages return."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from engines import assert_pages_return
from programs import ECHO, GENERATE, HOLD_PAGES, program

import pieray
from pieray.errors import DeviceLost, EngineError, PeerLost, PierayError

TIMEOUT_S = 30.0


def kill(engine: Any, role: str) -> int:
    """SIGKILL the first actor of the role; returns its pid."""
    pid = next(a["pid"] for a in engine.status()["actors"] if a["role"] == role)
    os.kill(pid, signal.SIGKILL)
    return int(pid)


def until_replaced(engine: Any, role: str, old_pid: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            pids = [a["pid"] for a in engine.status()["actors"] if a["role"] == role]
        except EngineError:
            pids = []
        if pids and old_pid not in pids:
            return
        assert time.monotonic() < deadline, f"no new {role} within {TIMEOUT_S} s"
        time.sleep(0.05)


def launch_soon(engine: Any, *args: Any, **kwargs: Any) -> Any:
    """Launch, again while the engine is being mended."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            process = engine.launch(*args, **kwargs)
            process.result(timeout=TIMEOUT_S)
        except PierayError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return process


def test_a_dead_inferlet_actor_answers_its_clients_and_gives_its_pages_back(engine: Any) -> None:
    expected = engine.launch(GENERATE, prompt="12+7=").result(timeout=30)
    holding = [engine.launch(HOLD_PAGES) for _ in range(3)]
    for process in holding:
        assert next(iter(process)).text == "held"
    pid = kill(engine, "inferlets")
    for process in holding:
        with pytest.raises(PeerLost, match="gone"):
            process.result(timeout=10)
    until_replaced(engine, "inferlets", pid)
    assert launch_soon(engine, GENERATE, prompt="12+7=").result() == expected
    assert_pages_return(engine)


def test_a_launch_right_after_its_actor_was_killed_runs_elsewhere_or_says_that_it_may_have_run(engine: Any) -> None:
    """With a place that was granted before, and without."""
    expected = engine.launch(GENERATE, prompt="12+7=").result(timeout=30)
    fresh = pieray.Engine(engine.config, engine._controller, owns_engine=False, owns_ray=False)
    pid = kill(engine, "inferlets")
    said, lost = [], []
    for number in range(12):
        try:
            said.append((engine, fresh)[number % 2].launch(GENERATE, prompt="12+7=").result(timeout=TIMEOUT_S))
        except PeerLost as error:
            lost.append(error.message)
    assert said == [expected] * len(said)
    assert len(lost) <= 4
    for message in lost:
        assert "may have run" in message or "the actor that hosted" in message  # it had been launched by then
        assert "class_name" not in message  # nothing of Ray's
    until_replaced(engine, "inferlets", pid)
    fresh.close()
    assert_pages_return(engine)


@pytest.mark.parametrize("role", ["batcher", "resource-manager"])
def test_a_dead_device_group_fails_what_runs_and_is_replaced(engine: Any, role: str) -> None:
    expected = engine.launch(GENERATE, prompt="12+7=").result(timeout=30)
    running = engine.launch(GENERATE, prompt="12+7=", max_tokens=900)
    next(iter(running))
    idle = engine.launch(ECHO)
    pid = kill(engine, role)
    with pytest.raises(DeviceLost, match="device group is gone"):
        running.result(timeout=10)
    until_replaced(engine, role, pid)
    assert launch_soon(engine, GENERATE, prompt="12+7=").result() == expected
    idle.send("still here")  # an inferlet that needs no device has noticed nothing
    idle.send("end")
    assert idle.result(timeout=10) == 1
    assert_pages_return(engine)


@pytest.fixture
def detached(ray_cluster: None) -> Iterator[Any]:
    with pieray.start(namespace=f"detached-{time.time_ns()}", detached=True) as started:
        yield started
        started.shutdown()


PARENT = program(
    """
from inferlet import Error, children, session
async def main():
    session.send("up")
    await session.receive()
    try:
        await children.launch(source="def main(): ...")
    except Error as error:
        return error.code
""",
    "parent",
)


def test_a_dead_controller_is_an_answer_not_a_wait(detached: Any) -> None:
    import ray

    engine = detached
    process = engine.launch(ECHO)
    parent = engine.launch(PARENT, capabilities={"children": True})
    assert next(iter(parent)).text == "up"
    pid = ray.get(engine._controller.pid.remote())
    other = pieray.Engine(engine.config, engine._controller, owns_engine=False, owns_ray=False)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="gone"):
        engine.ps()
    with pytest.raises(EngineError, match="gone"):
        other.launch(ECHO)
    beyond = engine.launch(ECHO)  # at a place granted before
    beyond.send("end")
    assert beyond.result(timeout=10) == 0
    process.send("end")  # what runs does not need it
    assert process.result(timeout=10) == 0
    parent.send("go")  # but for children: the launch fails, and not its parent
    assert parent.result(timeout=30) == "peer-lost"
    with pieray.start(namespace=engine.config.namespace) as again:  # the orphans of the old one are in nobody's way
        assert again.launch(GENERATE, prompt="1+1=", max_tokens=1).result(timeout=30)


def test_where_a_controller_has_died_another_engine_starts_at_once(ray_cluster: None) -> None:
    import ray

    namespace = f"again-{time.time_ns()}"
    first = pieray.start(namespace=namespace)
    os.kill(ray.get(first._controller.pid.remote()), signal.SIGKILL)
    with pytest.raises(EngineError, match="gone"):
        first.ps()
    with pieray.start(namespace=namespace) as again:  # though `first` still has a handle of the dead one
        assert again.launch(GENERATE, prompt="1+1=", max_tokens=1).result(timeout=30)
        first.close()  # ends nothing of another engine's
        assert again.launch(GENERATE, prompt="1+1=", max_tokens=1).result(timeout=30)
        with pytest.raises(EngineError, match="runs in namespace .* already"):
            pieray.start(namespace=namespace)


def test_a_client_that_dies_leaves_its_inferlet_to_others(engine: Any) -> None:
    process = engine.launch(ECHO)
    process.send("a")
    with pieray.connect(namespace=engine.config.namespace) as second:
        seen = second.attach(process.id)
        for link in engine._links.open_links():
            link.close()
        with pytest.raises(PeerLost):
            process.result(timeout=10)
        seen.send("end")
        assert seen.result(timeout=10) == 1
    again = engine.attach(process.id)
    assert again.result(timeout=10) == 1


def test_dedicated_actors_are_added_as_needed(dedicated: Any) -> None:
    processes = [dedicated.launch(ECHO) for _ in range(4)]
    actors = [a for a in dedicated.status()["actors"] if a["role"] == "inferlets"]
    live = [a["num_live"] for a in actors]
    assert max(live) == 1
    assert sum(live) == 4  # and perhaps spare ones, kept ready
    assert len({a["pid"] for a in actors}) == len(live)
    for process in processes:
        process.send("end")
        assert process.result(timeout=10) == 0
    assert_pages_return(dedicated)


def test_an_actor_and_the_device_group_that_die_at_once_are_both_replaced(engine: Any) -> None:
    expected = engine.launch(GENERATE, prompt="12+7=").result(timeout=30)
    echo = engine.launch(ECHO)
    before = engine.status()
    pids = {a["role"]: a["pid"] for a in before["actors"]}
    for role in ("batcher", "inferlets"):
        os.kill(pids[role], signal.SIGKILL)
    for role in ("batcher", "resource-manager", "inferlets"):
        until_replaced(engine, role, pids[role])
    assert launch_soon(engine, GENERATE, prompt="12+7=").result() == expected
    status = engine.status()
    assert status["failure"] is None
    assert status["num_restarts"] - before["num_restarts"] <= 3  # each death is counted once; perhaps a second try
    assert echo.id not in {row["instance_id"] for row in engine.ps()}
    assert_pages_return(engine)
