"""A batcher that is killed while plans run: their `next` is device-lost, the engine comes back, pages return."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from programs import GENERATE, program

from pieray.errors import PierayError

TIMEOUT_S = 30.0
DRAWS = program(
    """
from inferlet import Context, DeviceLost, Plan, kv, queue, session

async def main():
    q, pages, drawn = queue.create(), kv.alloc(60), 0
    try:
        while True:
            with Plan(q, pages, 0, [1], 900) as plan:
                plan.start()
                async for token in plan:
                    drawn += 1
                    session.send("running")
    except DeviceLost as error:
        return [drawn > 0, error.code]
""",
    "draws",
)


def test_plans_of_a_dead_batcher_are_device_lost(engine: Any) -> None:
    processes = [engine.launch(DRAWS) for _ in range(4)]
    for process in processes:
        next(iter(process))
    os.kill(next(a["pid"] for a in engine.status()["actors"] if a["role"] == "batcher"), signal.SIGKILL)
    assert [process.result(timeout=TIMEOUT_S) for process in processes] == [[True, "device-lost"]] * 4
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            found: Any = engine.launch(GENERATE, prompt="12+7=").result(timeout=TIMEOUT_S)
            break
        except PierayError:
            assert time.monotonic() < deadline, "no new device group in time"
            time.sleep(0.2)
    assert len(found) == 24
