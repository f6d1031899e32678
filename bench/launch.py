"""How long a launch takes on a warm engine: from `Engine.launch` to the first line of `main`, as the client sees it.

The inferlet's `main` sends one message and ends; beside it, the same with a plain Ray actor: created, called, answered.

    python bench/launch.py [--rounds 50]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import ray
from common import machine

import pieray

HELLO = pieray.ProgramSource(
    "hello", "hello.py", source="from inferlet import session\ndef main(): session.send('here')\n"
)
TARGET_MS = 50.0


class Hello:
    """The plain actor to compare with."""

    def here(self) -> str:
        return "here"


def launch(engine: pieray.Engine) -> float:
    began = time.perf_counter()
    process = engine.launch(HELLO)
    next(iter(process))
    took = time.perf_counter() - began
    process.result(timeout=30)
    return took * 1e3


def create_actor() -> float:
    began = time.perf_counter()
    actor = ray.remote(num_cpus=0)(Hello).remote()
    ray.get(actor.here.remote(), timeout=60)
    took = time.perf_counter() - began
    ray.kill(actor)
    return took * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    with pieray.start(namespace="bench-launch") as engine:
        launch(engine)
        launches = [launch(engine) for _ in range(rounds)]
        actors = [create_actor() for _ in range(min(5, rounds))]
    figures = {
        "launch_ms_median": round(statistics.median(launches), 2),
        "launch_ms_p90": round(statistics.quantiles(launches, n=10)[-1], 2),
        "plain_actor_ms_median": round(statistics.median(actors), 1),
        "rounds": rounds,
    }
    line = {
        "claim": "a launch on a warm engine reaches main() within 50 ms",
        "figures": figures,
        "ratio": round(statistics.median(actors) / statistics.median(launches), 1),
        "target": f"launch_ms_median < {TARGET_MS:.0f}",
        "ok": figures["launch_ms_median"] < TARGET_MS,
        "machine": machine(),
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
