"""What one tenant's flood of the Broker costs another: the time of four calls, alone and beside it.

The victim, of a tenant of its own, times one `store.put`, `store.get`, `messaging.push` and `messaging.pull` together,
a hundred times.  Beside it run inferlets of another tenant, each with as many calls under way as it may have.

    python bench/tenants.py [--apart] [--flooders 4] [--rounds 100] [--only puts names]

`--apart` gives each inferlet an actor of its own; else all share one, its thread that runs guests included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common import machine

import pieray
from pieray import ProgramSource

BOTH = {"messaging": True, "store": True}

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
FLOODS = {
    "pushes": """
from inferlet import messaging, session
async def main():
    session.send("ready")
    while True:
        tickets = [messaging.push_ticket("q", "x" * 200) for _ in range(1000)]
        pulls = [messaging.pull_ticket("q") for _ in range(1000)]
        for ticket in [*tickets, *pulls]:
            await ticket
""",
    "texts": """
from inferlet import messaging, session
TEXT = "x" * (1 << 20)
async def main():
    session.send("ready")
    while True:
        tickets = [messaging.push_ticket("long", TEXT) for _ in range(8)]
        pulls = [messaging.pull_ticket("long") for _ in range(8)]
        for ticket in [*tickets, *pulls]:
            await ticket
""",
    "puts": """
from inferlet import gather, session, store
async def main():
    session.send("ready")
    while True:
        await gather(*(store.put(f"key-{i}", "x" * 200) for i in range(2000)))
""",
    "names": """
from inferlet import gather, session, store
async def main():
    for start in range(0, 40_000, 2000):
        await gather(*(store.put(f"{i:08}", "") for i in range(start, start + 2000)))
    session.send("ready")
    while True:
        await gather(*(store.names() for _ in range(20)))
""",
    "broadcasts": """
from inferlet import messaging, session
async def main():
    for _ in range(60):
        await messaging.subscribe("news")
    session.send("ready")
    while True:
        tickets = [messaging.broadcast_ticket("news", "x", timeout=1.0) for _ in range(1000)]
        for ticket in tickets:
            try:
                await ticket
            except Exception:
                pass
""",
}


@contextmanager
def beside(engine: pieray.Engine, flood: str, num: int) -> Iterator[None]:
    """Run `num` inferlets of the hostile tenant for as long as the body takes."""
    engine.tenant = "hostile"
    processes = []
    if flood:
        program = ProgramSource(flood, f"{flood}.py", source=FLOODS[flood], capabilities=BOTH)
        processes = [engine.launch(program) for _ in range(num)]
        for process in processes:
            if not any(True for _ in process):  # its first text
                process.result()
    engine.tenant = "victim"
    try:
        yield
    finally:
        for process in processes:
            process.kill()


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
        for flood in arguments.only:
            with beside(engine, flood, arguments.flooders):
                time.sleep(0.5)
                figures[flood] = measure(engine, arguments.rounds)
            print(json.dumps({flood: figures[flood]}), flush=True)
    print(json.dumps({"apart": arguments.apart, "flooders": arguments.flooders, "machine": machine(), **figures}))


if __name__ == "__main__":
    main()
