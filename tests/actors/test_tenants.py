"""Tenants on a running engine: the order of what is pushed while it comes up, exports seen and dropped from outside."""

from __future__ import annotations

from typing import Any

from programs import program

import pieray

MESSAGING = {"messaging": True}
NUM_TEXTS = 3000

PUSH = program(
    f"""
from inferlet import messaging
async def main(queue):
    tickets = [messaging.push_ticket(queue, str(i)) for i in range({NUM_TEXTS})]
    for ticket in tickets:
        await ticket
""",
    "push",
)
PULL = program(
    f"""
from inferlet import messaging
async def main(queue):
    return [int(await messaging.pull(queue, timeout=60)) for _ in range({NUM_TEXTS})]
""",
    "pull",
)


def test_thousands_of_pushes_while_an_engine_comes_up_keep_their_order(ray_cluster: None) -> None:
    """They are made before and while the actor's link to the Broker is."""
    for i in range(3):
        with pieray.start(namespace=f"order-{i}") as engine:
            pushing = [engine.launch(PUSH, {"queue": str(q)}, capabilities=MESSAGING) for q in range(3)]
            pulling: list[Any] = [engine.launch(PULL, {"queue": str(q)}, capabilities=MESSAGING) for q in range(3)]
            for process in pushing:
                process.result(timeout=90)
            for process in pulling:
                assert process.result(timeout=90) == list(range(NUM_TEXTS))
