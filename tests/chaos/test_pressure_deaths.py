"""Processes die, freeze and are killed while programs give up their pages for each other: everybody is answered, with
the text that it has alone or a typed error, and all pages and host slots come back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engines import assert_pages_return
from programs import program
from rounds import seeds

import pieray
from pieray.errors import EngineError, PierayError

SOON = 60.0
MOMENT_S = 0.7
NUM_PAGES = 64
"""Of 16 tokens: four of the programs below fit."""

WRITES = program(
    """
from inferlet import Context, session

async def main(tokens, count, kind):
    async with Context(tokens, reuse=kind != "alone") as ctx:
        async def said(ctx, seed):
            generation = ctx.generate(count, temperature=1.0, seed=seed, stop_tokens=())
            await generation
            return generation.tokens
        first = await said(ctx, 1)
        if kind == "waits":
            session.send("ready")
            await session.receive()
        if kind == "forks":
            async with ctx.fork() as other:
                first += await said(other, 2)
        return first + await said(ctx, 3)
""",
    "writes",
)
WORKS = [
    {"tokens": [3 + (seed + 7 * i) % 200 for i in range(48)], "count": 90, "kind": kind}
    for seed, kind in enumerate(["", "alone", "waits", "forks", "", "waits"])
]
SETTINGS: dict[str, Any] = {
    "actor_pool": 2,
    "inferlets_per_actor": 8,
    "max_actors": 3,
    "suspect_after_s": 3.0,
    "replace_after_s": 6.0,
}


def start(**options: Any) -> Any:
    model = {"num_pages": NUM_PAGES, "swap_memory_bytes": options.pop("swap_memory_bytes", -1)}
    return pieray.start(namespace=f"pressed-{time.time_ns()}", model=model, **SETTINGS, **options)


@pytest.fixture(scope="module")
def swapping(ray_cluster: None) -> Iterator[Any]:
    """An engine on whose pool few programs fit; host memory takes what they give up."""
    with start() as started:
        yield started


@pytest.fixture(scope="module")
def computing_again(ray_cluster: None) -> Iterator[Any]:
    """One where all that is given up is computed again.  It outlives its Controller."""
    with start(swap_memory_bytes=0, detached=True) as started:
        yield started
        started.shutdown()


@pytest.fixture(scope="module")
def texts(swapping: Any) -> list[Any]:
    """What each of `WORKS` says alone."""
    found = []
    for work in WORKS:
        process = swapping.launch(WRITES, work)
        process.send("go on")
        found.append(process.result(timeout=SOON))
    return found


def actors(engine: Any, role: str) -> list[dict[str, Any]]:
    return [a for a in engine.status()["actors"] if a["role"] == role]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Crowd:
    """`times` programs for each of `WORKS`, under way on a pool that is too small for them: some have given up their
    pages for others."""

    def __init__(self, engine: Any, times: int = 3) -> None:
        self.engine = engine
        before = self._num_preempted()
        self.processes = launch(engine, times)
        until(lambda: self._num_preempted() >= before + 4, "programs give up their pages")
        until(lambda: any(row["swapped"] for row in engine.ps()), "one has no pages just now")

    def _num_preempted(self) -> int:
        return int(actors(self.engine, "resource-manager")[0]["preempted"])

    def outcomes(self) -> list[Any]:
        return outcomes(self.processes)


def launch(engine: Any, times: int) -> list[Any]:
    launched = engine.launch_many([(WRITES, work) for work in WORKS * times])
    assert not [one for one in launched if isinstance(one, PierayError)], launched
    return list(launched)


def outcomes(processes: list[Any]) -> list[Any]:
    """What each says, or the code of its error."""
    for process in processes:
        with contextlib.suppress(PierayError):
            process.send("go on")
    return [_outcome(process) for process in processes]


def _outcome(process: Any) -> Any:
    try:
        return process.result(timeout=SOON)
    except PierayError as error:
        return error.code


def assert_right(found: list[Any], texts: list[Any], *codes: str) -> int:
    """Each is the text that the program has alone, or one of these errors; how many are errors."""
    errors = [outcome for outcome in found if isinstance(outcome, str)]
    assert set(errors) <= set(codes), errors
    for place, outcome in enumerate(found):
        assert isinstance(outcome, str) or outcome == texts[place % len(texts)], WORKS[place % len(WORKS)]
    return len(errors)


def assert_well(engine: Any, texts: list[Any]) -> None:
    """Later programs say what they have to, and every page and host slot is there again."""
    until(lambda: _is_whole(engine), "the engine is whole again")
    assert assert_right(outcomes(launch(engine, 1)), texts) == 0
    assert_pages_return(engine, SOON)
    (manager,), (batcher,) = actors(engine, "resource-manager"), actors(engine, "batcher")
    states = [manager[state] for state in ("free", "cached", "leased", "quarantined")]
    assert sum(states) == manager["total"] == NUM_PAGES
    assert states[2:] == [0, 0]
    assert batcher["swap"]["used"] == 0
    assert manager["waiting"] == 0
    none = dict.fromkeys(("held", "waiting", "waited", "preempted"), 0)  # of a new one that nobody had to wait for
    counts = manager["tenants"].get(engine.tenant, none)
    assert (counts["held"], counts["waiting"]) == (0, 0)
    assert (counts["waited"], counts["preempted"]) == (manager["waited"], manager["preempted"])


def _is_whole(engine: Any) -> bool:
    """Whether all actors are there, and hosts connected: while some die, `status` may fail."""
    try:
        rows = engine.status()["actors"]
    except EngineError:
        return False
    roles = [row["role"] for row in rows if row["state"] == "up"]
    return {"batcher", "resource-manager"} <= set(roles) and roles.count("inferlets") >= SETTINGS["actor_pool"]


@pytest.mark.parametrize("memory", ["swapping", "computing_again"])
@pytest.mark.parametrize("seed", seeds(1))
def test_an_inferlet_actor_that_dies_in_the_middle_of_swaps_fails_its_own_programs_alone(
    request: pytest.FixtureRequest, texts: list[Any], memory: str, seed: int
) -> None:
    engine = request.getfixturevalue(memory)
    crowd = Crowd(engine)
    os.kill(actors(engine, "inferlets")[0]["pid"], signal.SIGKILL)
    num_lost = assert_right(crowd.outcomes(), texts, "peer-lost")
    assert 0 < num_lost <= SETTINGS["inferlets_per_actor"]  # the others have noticed nothing
    assert_well(engine, texts)


@pytest.mark.parametrize(("memory", "role"), [("swapping", "batcher"), ("computing_again", "resource-manager")])
@pytest.mark.parametrize("seed", seeds(1))
def test_a_device_group_that_dies_in_the_middle_of_swaps_is_lost_for_what_runs(
    request: pytest.FixtureRequest, texts: list[Any], memory: str, role: str, seed: int
) -> None:
    engine = request.getfixturevalue(memory)
    crowd = Crowd(engine)
    os.kill(actors(engine, role)[0]["pid"], signal.SIGKILL)
    assert assert_right(crowd.outcomes(), texts, "device-lost") > 0
    assert_well(engine, texts)


def test_programs_that_are_killed_in_the_middle_of_swaps_end_and_the_others_go_on(
    swapping: Any, texts: list[Any]
) -> None:
    crowd = Crowd(swapping)
    for process in crowd.processes[::2]:
        swapping.kill(process.id)
    found = crowd.outcomes()
    assert assert_right(found, texts, "cancelled") > 0
    assert not any(isinstance(outcome, str) for outcome in found[1::2])
    assert_well(swapping, texts)


def test_who_stands_still_for_a_moment_in_the_middle_of_swaps_fails_nothing(swapping: Any, texts: list[Any]) -> None:
    import ray

    pids = {role: actors(swapping, role)[0]["pid"] for role in ("inferlets", "batcher", "resource-manager")}
    pids["controller"] = ray.get(swapping._controller.pid.remote())
    for pid in pids.values():
        crowd = Crowd(swapping, 2)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(MOMENT_S)
        os.kill(pid, signal.SIGCONT)
        assert assert_right(crowd.outcomes(), texts) == 0
    assert_well(swapping, texts)
    assert pids.items() - {("controller", pids["controller"])} <= {
        (row["role"], row["pid"]) for row in swapping.status()["actors"]
    }  # nobody was replaced


CLIENT = """
import json, sys, time
import pieray
address, namespace, source, works = json.loads(sys.stdin.readline())
with pieray.connect(address=address, namespace=namespace) as engine:
    program = pieray.ProgramSource("writes", "writes.py", source=source)
    print(json.dumps([engine.launch(program, work, attached=place % 2 == 0).id for place, work in enumerate(works)]))
    sys.stdout.flush()
    time.sleep(600)
"""


def test_a_client_that_dies_in_the_middle_of_swaps_leaves_its_programs_to_others(
    swapping: Any, texts: list[Any]
) -> None:
    import ray

    works = WORKS * 2
    asked = [ray.get_runtime_context().gcs_address, swapping.config.namespace, WRITES.source, works]
    command, pipe = [sys.executable, "-c", CLIENT], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as client:
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(json.dumps(asked) + "\n")
            client.stdin.flush()
            ids = json.loads(client.stdout.readline())
            crowd = Crowd(swapping, 1)
        finally:
            client.kill()
    found = outcomes([swapping.attach(instance_id) for instance_id in ids])
    assert assert_right(found, texts, "cancelled") > 0  # those that were attached, if they have not ended before
    assert not any(isinstance(outcome, str) for outcome in found[1::2])
    assert assert_right(crowd.outcomes(), texts) == 0
    assert_well(swapping, texts)


def test_programs_go_on_when_the_controller_dies_in_the_middle_of_swaps(computing_again: Any, texts: list[Any]) -> None:
    import ray

    engine = computing_again  # whose last test this is
    crowd = Crowd(engine)
    os.kill(ray.get(engine._controller.pid.remote()), signal.SIGKILL)
    assert assert_right(crowd.outcomes(), texts) == 0
    manager, batcher = (
        ray.get_actor(f"pieray.{role}", namespace=engine.config.namespace) for role in ("resource-manager", "batcher")
    )

    def are_all_back() -> bool:
        pages = ray.get(manager.status.remote(), timeout=SOON)
        return bool(pages["free"] + pages["cached"] == pages["total"])

    until(are_all_back, "pages return")
    assert ray.get(batcher.status.remote(), timeout=SOON)["swap"]["used"] == 0
