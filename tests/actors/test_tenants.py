"""Tenants on a running engine: the order of what is pushed while it comes up, exports seen and dropped from outside."""

from __future__ import annotations

from typing import Any

import pytest
from engines import assert_pages_return, run
from programs import program

import pieray
from pieray.errors import InvalidRequest, NotFound, QuotaExceeded

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
    for i in range(2):
        with pieray.start(namespace=f"order-{i}") as engine:
            pushing = [engine.launch(PUSH, {"queue": str(q)}, capabilities=MESSAGING) for q in range(3)]
            pulling: list[Any] = [engine.launch(PULL, {"queue": str(q)}, capabilities=MESSAGING) for q in range(3)]
            for process in pushing:
                process.result(timeout=90)
            for process in pulling:
                assert process.result(timeout=90) == list(range(NUM_TEXTS))


PIN = program(
    """
from inferlet import forward, kv, queue
async def main(name, num_pages, pinned=True, access="owner"):
    pages = kv.alloc(num_pages)
    tokens = [10 + sum(name.encode()) % 500] * (num_pages * kv.page_size())  # no two exports share pages
    await forward.forward(queue.create(), pages, 0, tokens)
    await kv.export_pages(name, pages, len(tokens), access=access, pinned=pinned)
    return True
""",
    "pin",
)
USE = program(
    """
from inferlet import forward, kv, queue
async def main(num_pages):
    pages = kv.alloc(num_pages)
    tokens = [7] * (num_pages * kv.page_size())
    await forward.forward(queue.create(), pages, 0, tokens)
    return True
""",
    "use",
)


def test_pages_pinned_by_one_tenant_leave_room_for_another_and_are_dropped_from_outside(ray_cluster: None) -> None:
    limits = {"pin_time_s": 3600.0, "page_wait_s": 5.0}
    with pieray.start(namespace="pins", model={"num_pages": 64}, lease_pages=1, limits=limits) as engine:
        engine.tenant = "hostile"
        for i in range(4):
            assert run(engine, PIN, name=f"mine-{i}", num_pages=8)
        with pytest.raises(QuotaExceeded, match="tenant_pin_share: 0.5 of the pool, 32 pages"):
            run(engine, PIN, name="more", num_pages=8)
        assert run(engine, PIN, name="more", num_pages=8, pinned=False)
        engine.tenant = "other"
        assert run(engine, USE, num_pages=30)  # what is not pinned makes room
        with pytest.raises(QuotaExceeded, match="pin_share: 0.75 of the pool, 48 pages"):
            run(engine, PIN, name="mine-0", num_pages=20)
        assert run(engine, PIN, name="mine-0", num_pages=16)
        found = {(e["tenant"], e["name"], e["num_pages"], e["pinned"]) for e in engine.exports()}
        assert found == {("other", "mine-0", 16, True), *(("hostile", f"mine-{i}", 8, True) for i in range(4))}
        with pytest.raises(InvalidRequest, match="2 exports are named 'mine-0'"):
            engine.drop_export("mine-0")
        assert engine.drop_export("mine-0", tenant="hostile")["tenant"] == "hostile"
        with pytest.raises(NotFound):
            engine.drop_export("mine-0", tenant="hostile")
        for export in engine.exports():
            engine.drop_export(export["name"], tenant=export["tenant"])
        assert engine.exports() == []
        assert run(engine, USE, num_pages=62)
        assert_pages_return(engine)
