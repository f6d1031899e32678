"""Many launches at once: as many actors as they need and no more, and none fails."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engines import assert_pages_return
from programs import program

import pieray

SOON = 120.0
HOLD = program("from inferlet import session\nasync def main():\n    await session.receive()\n", "hold")


def storm(engine: Any, count: int) -> list[Any]:
    with ThreadPoolExecutor(count) as threads:
        return [one.result(SOON) for one in [threads.submit(engine.launch, HOLD) for _ in range(count)]]


def live(engine: Any) -> list[int]:
    return sorted(a["num_live"] for a in engine.status()["actors"] if a["role"] == "inferlets")


def end(engine: Any, processes: list[Any]) -> None:
    for process in processes:
        process.send("")
    for process in processes:
        process.result(timeout=SOON)
    assert_pages_return(engine, SOON)


def test_a_storm_of_launches_starts_the_actors_that_it_needs(ray_cluster: None) -> None:
    with pieray.start(namespace=f"storm-{time.time_ns()}") as engine:
        processes = storm(engine, 120)
        assert live(engine) == [56, 64]
        end(engine, processes)


def test_a_storm_on_small_actors_fails_no_launch(ray_cluster: None) -> None:
    with pieray.start(namespace=f"storm-{time.time_ns()}", inferlets_per_actor=2) as engine:
        processes = storm(engine, 16)
        assert [n for n in live(engine) if n] == [2] * 8  # and perhaps a spare one
        assert len(live(engine)) <= 9
        end(engine, processes)
