"""Processes are frozen with SIGSTOP and woken up with SIGCONT: each is named, set aside, replaced; nobody waits."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engines import assert_pages_return
from programs import ECHO, GENERATE, HOLD_PAGES, program

import pieray
from pieray.errors import DeviceLost, EngineError, NoAnswer, OutOfPages, PeerLost, PierayError

SOON = 60.0
SHORT = 12.0
"""What is asked while somebody is frozen has its answer by then: deadlines of 3 s, and a machine that is busy."""
FAST = {"suspect_after_s": 3.0, "replace_after_s": 8.0}
NEVER = 10_000.0

STORES = program("from inferlet import store\nasync def main(key):\n    await store.put(key, 'ran')\n", "stores")
NAMES = program("from inferlet import store\nasync def main():\n    return await store.names('lost')\n", "names")
STORE = {"capabilities": {"store": True}}
NEED_PAGES = program(
    """
from inferlet import kv, session

async def main():
    session.send("ready")
    await session.receive()
    await kv.reserve(40)
""",
    "need-pages",
)


def until(condition: Callable[[], bool], what: str = "", timeout_s: float = SOON) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def in_time(timeout_s: float = SHORT) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < timeout_s


def actors(engine: Any, role: str) -> list[dict[str, Any]]:
    return [a for a in engine.status()["actors"] if a["role"] == role]


@pytest.fixture(scope="module")
def engine(ray_cluster: None) -> Iterator[Any]:
    """One that replaces who is frozen."""
    with pieray.start(namespace="frozen", actor_pool=2, **FAST) as started:
        yield started


@pytest.fixture(scope="module")
def patient(ray_cluster: None) -> Iterator[Any]:
    """One that waits for who is frozen, with one InferletActor."""
    with pieray.start(namespace="patient", max_actors=1, **{**FAST, "replace_after_s": NEVER}) as started:
        yield started


def test_a_frozen_inferlet_actor_keeps_nobody_waiting_and_is_replaced(engine: Any) -> None:
    echo = engine.launch(ECHO)
    host = next(a for a in actors(engine, "inferlets") if a["num_live"] == 1)
    with frozen(host["pid"]):
        for _ in range(4):
            with in_time():
                assert engine.launch(GENERATE, prompt="1+1=", max_tokens=2).result(timeout=SOON)
        with in_time():
            until(lambda: engine.status()["silent"] == [host["name"]])
        with in_time():
            assert {r["state"] for r in engine.ps() if r["instance_id"] == echo.id} <= {"unreachable"}
        with in_time(), pytest.raises(EngineError, match=rf"{host['name']} \(pid {host['pid']} .* does not answer"):
            engine.kill(echo.id)
        with pytest.raises(PeerLost):
            echo.result(timeout=SOON)
        until(lambda: [a["name"] for a in actors(engine, "inferlets")].count(host["name"]) == 0)
    until(lambda: engine.status()["silent"] == [])
    assert_pages_return(engine, SOON)


def test_launches_that_were_given_up_never_start(patient: Any) -> None:
    patient.launch(STORES, key="warm", **STORE).result(timeout=SOON)
    patient._calls.ping()
    (host,) = actors(patient, "inferlets")

    def launch(number: int) -> Exception | None:
        frames: list[bytes] = []
        calls = patient._calls

        class Hurried:
            """This engine's calls, whose launches have 5 s."""

            def launch(self, frame: bytes, _timeout_s: float) -> Any:
                frames.append(frame)
                return calls.launch(frame, 5.0)

            tell, ask = calls.tell, calls.ask

        hurried = pieray.Engine(patient.config, patient._controller, owns_engine=False, owns_ray=False)
        hurried._launching._calls, hurried._launching._path = Hurried(), None  # type: ignore[assignment]
        try:
            hurried.launch(STORES, key=f"lost-{number}", **STORE)
        except PierayError as error:
            return error
        return None

    with frozen(host["pid"]), ThreadPoolExecutor(20) as threads:
        errors = list(threads.map(launch, range(20)))
        assert all(isinstance(error, EngineError) for error in errors), errors
    until(lambda: patient.status()["silent"] == [])
    assert patient.launch(NAMES, **STORE).result(timeout=SOON) == []
    time.sleep(2.0)
    assert patient.launch(NAMES, **STORE).result(timeout=SOON) == []
    assert {row["name"] for row in patient.ps()} == {"stores", "names"}
    assert len([row for row in patient.ps() if row["name"] == "stores"]) == 1
    assert actors(patient, "inferlets")[0]["pid"] == host["pid"]


@pytest.mark.parametrize("role", ["batcher", "resource-manager"])
def test_work_on_a_frozen_device_group_is_lost_in_time_and_the_pair_is_replaced(engine: Any, role: str) -> None:
    expected = engine.launch(GENERATE, prompt="12+7=").result(timeout=SOON)
    running = engine.launch(GENERATE, prompt="12+7=", max_tokens=900)
    holding = engine.launch(HOLD_PAGES)
    next(iter(running)), next(iter(holding))
    (group,) = actors(engine, role)
    with frozen(group["pid"]):
        until(lambda: engine.status()["silent"] == [group["name"]], timeout_s=SHORT)
        with pytest.raises(DeviceLost):
            running.result(timeout=SOON)
        until(lambda: engine.status()["silent"] == [])
        assert engine.launch(GENERATE, prompt="12+7=").result(timeout=SOON) == expected
        assert actors(engine, role)[0]["pid"] != group["pid"]
    holding.send("")
    assert_pages_return(engine, SOON)


def test_pages_are_waited_for_no_longer_than_said_of_a_frozen_manager_too(patient: Any) -> None:
    process = patient.launch(NEED_PAGES, limits={"page_wait_s": 2.0})
    next(iter(process))
    (manager,) = actors(patient, "resource-manager")
    with frozen(manager["pid"]):
        process.send("go")
        with in_time(), pytest.raises(OutOfPages, match="page_wait_s"):
            process.result(timeout=SOON)
    until(lambda: patient.status()["silent"] == [])
    assert patient.launch(GENERATE, prompt="1+1=", max_tokens=2).result(timeout=SOON)
    assert_pages_return(patient, SOON)


def test_a_frozen_broker_is_named_and_replaced(engine: Any) -> None:
    engine.launch(STORES, key="warm", **STORE).result(timeout=SOON)
    (broker,) = actors(engine, "broker")
    with frozen(broker["pid"]):
        with in_time():
            until(lambda: engine.status()["silent"] == [broker["name"]])
        with in_time():
            assert engine.launch(GENERATE, prompt="1+1=", max_tokens=2).result(timeout=SOON)
        with pytest.raises(PeerLost):
            engine.launch(STORES, key="a", **STORE).result(timeout=SOON)
        until(lambda: engine.status()["silent"] == [])

        def is_stored() -> bool:
            try:  # the actor's link to the new one comes a moment later
                engine.launch(STORES, key="b", **STORE).result(timeout=SOON)
            except PeerLost:
                return False
            return True

        until(is_stored)


def test_a_frozen_controller_is_told_within_seconds_and_is_well_when_it_wakes_up(engine: Any) -> None:
    import ray

    engine._launching._placements._grants.clear()  # the next has all its time
    echo = engine.launch(ECHO)
    pid = ray.get(engine._controller.pid.remote())
    old = {a["name"]: a["pid"] for a in engine.status()["actors"]}
    other = pieray.Engine(engine.config, engine._controller, owns_engine=False, owns_ray=False)  # has no grant
    with frozen(pid):
        asks: list[Callable[[], Any]] = [
            engine.status,
            engine.ps,
            lambda: engine.kill(echo.id),
            *[lambda number=number: other.launch(STORES, key=f"lost-{number}", **STORE) for number in range(8)],
        ]
        with in_time():  # what was granted needs no Controller, for a while
            assert engine.launch(GENERATE, prompt="1+1=", max_tokens=2).result(timeout=SOON)
        with in_time(2 * SHORT), ThreadPoolExecutor(len(asks)) as threads:
            for answer in [threads.submit(ask) for ask in asks]:
                with pytest.raises(NoAnswer, match="Controller does not answer"):
                    answer.result(SOON)
        time.sleep(FAST["replace_after_s"])
    until(lambda: engine.status()["silent"] == [])
    with contextlib.suppress(PierayError):
        echo.result(timeout=SOON)  # its kill was waiting in the Controller
    assert engine.launch(NAMES, **STORE).result(timeout=SOON) == []
    assert old.items() <= {a["name"]: a["pid"] for a in engine.status()["actors"]}.items()  # nobody was accused
    other.close()


def test_a_controller_and_a_batcher_frozen_at_once_are_mended_when_the_controller_wakes_up(engine: Any) -> None:
    import ray

    expected = engine.launch(GENERATE, prompt="12+7=").result(timeout=SOON)
    running = engine.launch(GENERATE, prompt="12+7=", max_tokens=900)
    next(iter(running))
    controller, (group,) = ray.get(engine._controller.pid.remote()), actors(engine, "batcher")
    with frozen(group["pid"]):
        with frozen(controller):
            time.sleep(FAST["replace_after_s"] + 2.0)
        with pytest.raises(DeviceLost):
            running.result(timeout=SOON)
        until(lambda: engine.status()["silent"] == [])
        assert engine.launch(GENERATE, prompt="12+7=").result(timeout=SOON) == expected
        assert actors(engine, "batcher")[0]["pid"] != group["pid"]
    assert_pages_return(engine, SOON)
