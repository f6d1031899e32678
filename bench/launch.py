"""What a launch takes, as its client sees it: 1, 32 and 256 at once, on an engine that has just started and a warm one.

Of each: the time from the call of `Engine.launch` to the first line of `main` (a message that it sends), launches per
second, from the first call to the last such message, and the time to the first text of a completion, launched so; and
the CPU time of a launch in each process, with that of the guests made ahead for the next ones.  "1" is one after
another, "many" all by one call of `Engine.launch_many`, "installed" a program of the registry by its name.
Warm figures are medians over the rounds; p99 is that of all launches of a round.

    python bench/launch.py [--rounds 5] [--levels 1 32 256]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from common import machine

import pieray

HELLO = pieray.ProgramSource(
    "hello", "hello.py", source="from inferlet import session\ndef main(): session.send('here')\n"
)
PROMPT = "Here is a list of words to sort: lemon apple cherry plum grape. "
IN_A_ROW = 32
"""Launches of a round that come one after another."""
SETTLE_S = 1.5
"""After a round, for guests to be made ahead."""
MAIN_MS, LAUNCHES_PER_S, FIRST_TEXT_MS = 3.0, 150.0, 150.0
TICK_MS = 1e3 / os.sysconf("SC_CLK_TCK")

Launch = Callable[[], pieray.Process]


def cpu_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_MS


class Bench:
    """An engine, and its processes by role."""

    def __init__(self, engine: pieray.Engine) -> None:
        import ray

        self.engine = engine
        self.controller: int = ray.get(engine._controller.pid.remote())

    def processes(self) -> dict[str, list[int]]:
        found = {"client": [os.getpid()], "controller": [self.controller]}
        for actor in self.engine.status()["actors"]:
            if actor["role"] in ("inferlets", "batcher", "resource-manager"):
                found.setdefault(actor["role"], []).append(actor["pid"])
        return found

    def hello(self) -> pieray.Process:
        return self.engine.launch(HELLO)

    def installed(self) -> pieray.Process:
        return self.engine.launch("hello")

    def many(self, level: int) -> dict[str, float]:
        """As `round`: all are launched when `launch_many` is called."""
        took = [0.0] * level
        time.sleep(SETTLE_S)

        def one(index: int, process: pieray.Process) -> None:
            next(iter(process), None)
            took[index] = (time.perf_counter() - began) * 1e3
            process.result(timeout=120)

        began = time.perf_counter()
        processes = self.engine.launch_many([(HELLO, {})] * level)
        threads = [threading.Thread(target=one, args=(i, p)) for i, p in enumerate(processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return figures_of(took, max(took) / 1e3)

    def completion(self) -> pieray.Process:
        return self.engine.launch("text-completion", prompt=PROMPT, max_tokens=1, ignore_eos=True)

    def round(self, launch: Launch, level: int) -> dict[str, float]:
        """Milliseconds to the first message of each, and launches per second; guests have been made ahead before."""
        time.sleep(SETTLE_S)
        number = level if level > 1 else IN_A_ROW
        took = [0.0] * number

        def one(index: int) -> None:
            began = time.perf_counter()
            process = launch()
            next(iter(process), None)
            took[index] = (time.perf_counter() - began) * 1e3
            process.result(timeout=120)

        began = time.perf_counter()
        if level == 1:
            for index in range(number):
                one(index)
            seconds = time.perf_counter() - began
        else:
            threads = [threading.Thread(target=one, args=(index,)) for index in range(number)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds = max(took) / 1e3
        return figures_of(took, seconds)

    def measured(self, launch: Launch, level: int) -> dict[str, float]:
        """A round, with the CPU time of a launch by role."""
        processes = self.processes()
        before = {role: sum(map(cpu_ms, pids)) for role, pids in processes.items()}
        found = self.round(launch, level)
        time.sleep(SETTLE_S)
        number = level if level > 1 else IN_A_ROW
        for role, pids in processes.items():
            found[f"cpu_ms_{role}"] = (sum(map(cpu_ms, pids)) - before[role]) / number
        return found


def figures_of(took_ms: list[float], seconds: float) -> dict[str, float]:
    p99 = statistics.quantiles(took_ms, n=100, method="inclusive")[-1]
    return {"p50_ms": statistics.median(took_ms), "p99_ms": p99, "per_s": len(took_ms) / seconds}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(r[name] for r in rounds), 2) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 32, 256])
    arguments = parser.parse_args()
    figures: dict[int, dict[str, dict[str, float]]] = {}
    for level in arguments.levels:
        with pieray.start(namespace=f"bench-launch-{level}") as engine:
            time.sleep(SETTLE_S)
            bench = Bench(engine)
            row = figures[level] = {"cold": medians([bench.round(bench.hello, level)])}
            time.sleep(SETTLE_S)
            row["warm"] = medians([bench.measured(bench.hello, level) for _ in range(arguments.rounds)])
            engine.install(HELLO)
            row["installed"] = medians([bench.round(bench.installed, level) for _ in range(arguments.rounds)])
            if level > 1:
                row["many"] = medians([bench.many(level) for _ in range(arguments.rounds)])
            row["first_text_cold"] = medians([bench.round(bench.completion, level)])
            time.sleep(SETTLE_S)
            row["first_text"] = medians([bench.measured(bench.completion, level) for _ in range(arguments.rounds)])
        for name, values in row.items():
            sys.stdout.write(f"{level:3d} at once, {name}: {values}\n")
    held = {
        "1: main() p50_ms": (figures.get(1, {}).get("warm", {}).get("p50_ms"), MAIN_MS, False),
        "32: launches per_s": (figures.get(32, {}).get("warm", {}).get("per_s"), LAUNCHES_PER_S, True),
        "32: first text p50_ms": (figures.get(32, {}).get("first_text", {}).get("p50_ms"), FIRST_TEXT_MS, False),
    }
    line = {
        "claim": "a warm launch reaches main() in 3 ms; 32 at once: 150 a second, and their first text in 150 ms",
        "figures": figures,
        "targets": {
            name: f"{value} ({'>=' if is_least else '<='} {bound:g})" for name, (value, bound, is_least) in held.items()
        },
        "ok": all(
            value is not None and (value >= bound if is_least else value <= bound)
            for value, bound, is_least in held.values()
        ),
        "machine": machine(),
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
