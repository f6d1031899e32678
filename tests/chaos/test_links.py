"""Links that break while both ends live (a frozen process looks dead over TCP), and who waited over them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engines import assert_pages_return
from programs import ECHO, GENERATE, program

import pieray
from pieray.errors import PierayError

TIMEOUT_S = 60.0
LOST_AFTER_S = 1.5


@pytest.fixture(scope="module")
def engine(ray_cluster: None) -> Iterator[Any]:
    with pieray.start(
        namespace=f"links-{time.time_ns()}", transport="tcp", heartbeat_s=0.25, lost_after_s=LOST_AFTER_S
    ) as started:
        yield started


def actor(engine: Any, role: str) -> dict[str, Any]:
    """Facts of the first actor of the role."""
    return next(found for found in engine.status()["actors"] if found["role"] == role)


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            if condition():
                return
        except PierayError:  # a frozen actor may fail a status
            pass
        assert time.monotonic() < deadline, f"{what} did not happen within {TIMEOUT_S} s"
        time.sleep(0.1)


def frozen(engine: Any, role: str) -> None:
    """Freeze it for so long that every peer over TCP has given it up, then let it go on."""
    pid = actor(engine, role)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(3 * LOST_AFTER_S)
    finally:
        os.kill(pid, signal.SIGCONT)


LINKED = ("inferlets", "batcher", "resource-manager")


def all_links_up(engine: Any) -> bool:
    """As the actors say; one that is frozen says nothing, and is waited for."""
    actors = [found for found in engine.status()["actors"] if found["role"] in LINKED]
    return all("links" in found and all(link["is_up"] for link in found["links"].values()) for found in actors)


@pytest.mark.parametrize("role", LINKED)
def test_after_a_freeze_over_tcp_every_launch_works(engine: Any, role: str) -> None:
    expected = engine.launch(GENERATE, prompt="12+7=").result(timeout=TIMEOUT_S)
    before = actor(engine, "inferlets")
    idle = engine.launch(ECHO)
    frozen(engine, role)

    def is_mended() -> bool:
        if not all_links_up(engine):
            return False
        same = [found for found in engine.status()["actors"] if found.get("pid") == before["pid"]]
        num_before = before["links"]["device"]["num_sessions"]
        return all(found["links"]["device"]["num_sessions"] > num_before for found in same)

    until("dialling again", is_mended)
    processes = [engine.launch(GENERATE, prompt="12+7=") for _ in range(20)]
    assert [process.result(timeout=TIMEOUT_S) for process in processes] == [expected] * 20
    if role != "inferlets":  # its client's link was not cut, and it needs no device
        idle.send("end")
        assert idle.result(timeout=TIMEOUT_S) == 0
    else:
        again = engine.attach(idle.id)
        again.send("end")
        assert again.result(timeout=TIMEOUT_S) == 0
    assert_pages_return(engine, timeout_s=TIMEOUT_S)


STORE = program(
    """
from inferlet import store

async def main(value):
    await store.put("key", value)
    return await store.get("key")
""",
    "store",
)


def test_after_a_freeze_the_broker_is_dialled_again(engine: Any) -> None:
    may = {"store": True}
    assert engine.launch(STORE, value="a", capabilities=may).result(timeout=TIMEOUT_S) == "a"
    frozen(engine, "broker")
    until("dialling again", lambda: all_links_up(engine))
    processes = [engine.launch(STORE, value=str(n), capabilities=may) for n in range(5)]
    for process in processes:
        process.result(timeout=TIMEOUT_S)


HOLDS_PAGES = program(
    """
from inferlet import forward, kv, queue, session

async def main():
    line, pages = queue.create(), kv.alloc(24)
    kv.pin()  # or its pages would be given up for who waits
    await forward.forward(line, pages, 0, [5] * (24 * 16))
    session.send("held")
    await session.receive()
""",
    "holds-pages",
)

WAITS_FOR_PAGES = program(
    """
from time import monotonic
from inferlet import forward, kv, queue
from inferlet.errors import DeviceLost

async def main():
    line = queue.create()
    first = forward.forward(line, kv.alloc(20), 0, [6] * (20 * 16))
    try:
        await first
    except DeviceLost:
        began = monotonic()
        try:
            await forward.forward(line, kv.alloc(1), 0, [5])
        except DeviceLost:
            return monotonic() - began
    return "no error"
""",
    "waits-for-pages",
)


def test_who_waits_for_pages_when_the_resource_manager_dies_is_told_and_goes_on(ray_cluster: None) -> None:
    """A lease request is under way then: the command behind it must not wait for its answer."""
    model = {"num_pages": 32}
    limits = {"page_wait_s": 300.0}
    with pieray.start(namespace=f"lease-{time.time_ns()}", model=model, limits=limits) as engine:
        assert next(iter(engine.launch(HOLDS_PAGES))).text == "held"
        process = engine.launch(WAITS_FOR_PAGES)
        until("waiting for pages", lambda: actor(engine, "resource-manager")["waiting"] == 1)
        os.kill(actor(engine, "resource-manager")["pid"], signal.SIGKILL)
        assert process.result(timeout=TIMEOUT_S) < 10.0
