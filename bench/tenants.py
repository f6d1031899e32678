"""What one tenant's flood of the Broker costs another: the time of four calls, alone and beside it.

The victim, of a tenant of its own, times one `store.put`, `store.get`, `messaging.push` and `messaging.pull` together,
a hundred times.  Beside it run inferlets of another tenant, each with as many calls under way as it may have; `calls_s`
is how many of theirs were answered in a second meanwhile.

    python bench/tenants.py [--apart] [--flooders 4] [--rounds 100] [--only puts names]

`--apart` gives each inferlet an actor of its own; else all share one, its thread that runs guests included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from common import machine

import pieray
from pieray import ProgramSource
from pieray.errors import Cancelled

BOTH = {"messaging": True, "store": True}
LIMITS = {"cpu_time_s": 3600.0, "wall_time_s": 3600.0, "output_bytes": 1 << 30}
"""No flood ends before it is measured."""

VICTIM = """
import time
from inferlet import messaging, store

async def main(rounds):
    laps = []
    for i in range(rounds):
        began = time.perf_counter()
        await store.put("key", str(i))
        assert await store.get("key") == str(i)
        await messaging.push("mine", "text")
        assert await messaging.pull("mine") == "text"
        laps.append((time.perf_counter() - began) * 1e3)
    return laps
"""
FILL = """
from inferlet import gather, store
async def main(count=40_000):
    for start in range(0, count, 2000):
        await gather(*(store.put(f"{i:08}", "") for i in range(start, start + 2000)))
"""
"""What `names` has to list: once, for all of the tenant."""
FLOODS = {  # each tells how many calls were answered, now and then
    "pushes": """
from inferlet import messaging, session
async def main():
    session.send("0")
    while True:
        tickets = [messaging.push_ticket("q", "x" * 200) for _ in range(1000)]
        pulls = [messaging.pull_ticket("q") for _ in range(1000)]
        for ticket in [*tickets, *pulls]:
            await ticket
        session.send("2000")
""",
    "texts": """
from inferlet import messaging, session
TEXT = "x" * (1 << 20)
async def main():
    session.send("0")
    while True:
        tickets = [messaging.push_ticket("long", TEXT) for _ in range(8)]
        pulls = [messaging.pull_ticket("long") for _ in range(8)]
        for ticket in [*tickets, *pulls]:
            await ticket
        session.send("16")
""",
    "puts": """
from inferlet import gather, session, store
async def main():
    session.send("0")
    while True:
        await gather(*(store.put(f"key-{i}", "x" * 200) for i in range(2000)))
        session.send("2000")
""",
    "names": """
from inferlet import gather, session, store
async def main():
    session.send("0")
    while True:
        await gather(*(store.names() for _ in range(20)))
        session.send("20")
""",
    "broadcasts": """
from inferlet import gather, messaging, session
async def read(topic):
    async for _ in topic:
        pass
async def write():
    while True:
        await gather(*(messaging.broadcast("news", "x" * 200) for _ in range(100)))
        session.send("100")
async def main():
    topics = [await messaging.subscribe("news") for _ in range(15)]
    session.send("0")
    await gather(write(), *(read(topic) for topic in topics))
""",
}


@dataclass
class Flood:
    """Inferlets of the hostile tenant that have begun."""

    processes: list[Any]
    began: float = field(default_factory=time.perf_counter)

    def end(self) -> float:
        """Kill them; how many of their calls were answered in a second.  Raises the error of one that had ended."""
        for process in self.processes:
            if process.is_done:
                process.result()
        took_s = time.perf_counter() - self.began
        for process in self.processes:
            process.kill()
        count = 0
        for process in self.processes:
            with suppress(Cancelled):
                count += sum(int(event.text) for event in process)
        return count / took_s


def start(engine: pieray.Engine, name: str, num: int) -> Flood:
    engine.tenant = "hostile"
    if name == "names":
        engine.launch(ProgramSource("fill", "fill.py", source=FILL, capabilities=BOTH), limits=LIMITS).result()
    program = ProgramSource(name, f"{name}.py", source=FLOODS[name], capabilities=BOTH)
    processes = [engine.launch(program, limits=LIMITS) for _ in range(num)]
    for process in processes:
        if not any(True for _ in process):  # its first text
            process.result()
    return Flood(processes)


def measure(engine: pieray.Engine, rounds: int) -> dict[str, float]:
    program = ProgramSource("victim", "victim.py", source=VICTIM, capabilities=BOTH)
    engine.tenant = "victim"
    laps = sorted(engine.launch(program, rounds=rounds).result(timeout=500))
    return {"p50_ms": round(statistics.median(laps), 2), "p99_ms": round(laps[int(len(laps) * 0.99)], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--flooders", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=FLOODS, default=list(FLOODS))
    parser.add_argument("--store-path", default="")
    arguments = parser.parse_args()
    settings: dict[str, Any] = {"store_path": arguments.store_path}
    if arguments.apart:
        settings["inferlets_per_actor"] = 1
    with pieray.start(namespace="bench-tenants", **settings) as engine:
        measure(engine, 20)
        figures: dict[str, object] = {"alone": measure(engine, arguments.rounds)}
        for name in arguments.only:
            flood = start(engine, name, arguments.flooders)
            time.sleep(0.5)
            figures[name] = {**measure(engine, arguments.rounds), "calls_s": round(flood.end())}
            print(json.dumps({name: figures[name]}), flush=True)
    print(json.dumps({"apart": arguments.apart, "flooders": arguments.flooders, "machine": machine(), **figures}))


if __name__ == "__main__":
    main()
