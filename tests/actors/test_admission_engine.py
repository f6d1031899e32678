"""Who is let in, on a running engine: ranks, a full line, quotas of tenants, and what the others are told."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from engines import assert_pages_return
from programs import program

import pieray
from pieray import LaunchRequest
from pieray.errors import Overloaded, QuotaExceeded

SOON = 60.0
HOLD = program("from inferlet import session\nasync def main():\n    await session.receive()\n", "hold")
PARENT = program(
    """
from inferlet import Overloaded, children
async def main():
    child = children.launch(source="async def main(): return 1")
    try:
        return await child
    except Overloaded as error:
        return [error.code, str(error)]
""",
    "parent",
)
STORE = program("from inferlet import store\nasync def main(size):\n    await store.put('k', 'x' * size)\n", "store")
TALK = program(
    """
from inferlet import Context
async def main(num_tokens):
    async with Context("Once") as ctx:
        async for _ in ctx.generate(num_tokens, stop_tokens=()):
            pass
""",
    "talk",
)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def engine(ray_cluster: None) -> Iterator[Any]:
    """With four places and a line for two."""
    tenants = {"lab": {"inferlets": 2, "store_bytes": 1000}, "slow": {"tokens_per_minute": 120}}
    with pieray.start(
        namespace=f"admission-{time.time_ns()}",
        inferlets_per_actor=4,
        max_actors=1,
        max_waiting_launches=2,
        tenants=tenants,
    ) as started:
        yield started
        assert_pages_return(started, SOON)


@pytest.fixture
def of(engine: Any) -> Iterator[Callable[[str], Any]]:
    """A client of a tenant."""
    clients: list[Any] = []

    def connect(tenant: str) -> Any:
        clients.append(pieray.connect(namespace=engine.config.namespace))
        clients[-1].tenant = tenant
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def held(engine: Any) -> Iterator[list[Any]]:
    """All places, taken."""
    processes = [engine.launch(HOLD) for _ in range(4)]
    yield processes
    for process in processes:
        process.kill()
    until(lambda: not [row for row in engine.ps() if row["state"] in ("starting", "running")])


def num_waiting(engine: Any) -> int:
    return sum(engine.admission()["waiting"].values())


def in_line(engine: Any, threads: ThreadPoolExecutor, client: Any, **options: Any) -> Future[Any]:
    before = num_waiting(engine)
    launching = threads.submit(client.launch, HOLD, **options)
    until(lambda: num_waiting(engine) == before + 1)
    return launching


def test_a_high_priority_passes_the_line_and_a_full_line_is_an_answer(
    engine: Any, of: Callable[[str], Any], held: list[Any]
) -> None:
    client = of("ann")
    with ThreadPoolExecutor(4) as threads:
        plain = in_line(engine, threads, client)
        high = in_line(engine, threads, client, priority=5, deadline_s=30)
        began = time.monotonic()
        with pytest.raises(Overloaded, match="max_waiting_launches: 2 launches wait") as full:
            client.launch(HOLD)
        assert time.monotonic() - began < 5.0
        assert 0 < full.value.retry_after_s <= 600
        refusals = client.launch_many([LaunchRequest(HOLD), (HOLD, {})])
        assert [type(refused) for refused in refusals] == [Overloaded] * 2
        assert engine.admission()["waiting"] == {"ann": 2}
        assert engine.admission()["refused"]["ann"] == 3
        held[0].send("")
        process = high.result(SOON)
        assert not plain.done()
        row = next(row for row in engine.ps() if row["instance_id"] == process.id)
        assert row["priority"] == 5
        process.send("")
        plain.result(SOON).send("")


def test_who_waits_too_long_is_told_when_to_come_again(engine: Any, of: Callable[[str], Any], held: list[Any]) -> None:
    client = of("ann")
    client._launching._config = dataclasses.replace(client.config, launch_wait_s=1.0)  # of this client
    began = time.monotonic()
    with pytest.raises(Overloaded, match="no InferletActor had room in time: 1 run, .* try again in about") as late:
        client.launch(HOLD)
    assert 0.5 < time.monotonic() - began < 10.0
    assert late.value.retry_after_s > 0


def test_a_tenant_over_its_quota_is_told_so_and_others_are_served(engine: Any, of: Callable[[str], Any]) -> None:
    lab, ann = of("lab"), of("ann")
    held = [lab.launch(HOLD) for _ in range(2)]
    with pytest.raises(Overloaded, match="inferlets: the quota of tenant 'lab' is 2 at one time; 2 run") as refused:
        lab.launch(HOLD)
    assert refused.value.retry_after_s > 0
    ann.launch(HOLD).send("")
    held[0].send("")
    held[0].result(timeout=SOON)
    held[0] = lab.launch(HOLD)  # at once: there is room
    with pytest.raises(Overloaded):
        lab.launch(HOLD)
    for process in held:
        process.send("")
        process.result(timeout=SOON)
    for _ in range(6):
        lab.launch(HOLD).kill()


def test_children_count_and_their_parent_gets_the_error(engine: Any, of: Callable[[str], Any]) -> None:
    lab = of("lab")
    until(lambda: "lab" not in engine.admission()["quotas"])
    assert lab.launch(PARENT, capabilities={"children": True}).result(timeout=SOON) == 1
    holds = lab.launch(HOLD)
    code, message = lab.launch(PARENT, capabilities={"children": True}).result(timeout=SOON)
    assert (code, message.partition(";")[0]) == ("overloaded", "inferlets: the quota of tenant 'lab' is 2 at one time")
    holds.kill()


def test_a_tenant_that_has_computed_its_tokens_of_a_minute_waits_for_more(
    engine: Any, of: Callable[[str], Any]
) -> None:
    slow = of("slow")
    slow.launch(TALK, num_tokens=300).result(timeout=SOON)
    until(lambda: engine.admission()["quotas"].get("slow", {}).get("tokens_left", 0) < -100)  # all are told
    with pytest.raises(Overloaded, match="tokens_per_minute: the quota of tenant 'slow' is 120") as refused:
        slow.launch(TALK, num_tokens=1)
    left = engine.admission()["quotas"]["slow"]["tokens_left"]
    assert -200 < left < -100  # of about 300 computed, 120 were allowed
    assert refused.value.retry_after_s == pytest.approx(-left / 2, abs=15)  # two a second
    of("ann").launch(TALK, num_tokens=1).result(timeout=SOON)


def test_a_tenants_own_store_quota_takes_the_place_of_the_engines(engine: Any, of: Callable[[str], Any]) -> None:
    options: dict[str, Any] = {"capabilities": {"store": True}}
    of("ann").launch(STORE, size=5000, **options).result(timeout=SOON)
    with pytest.raises(QuotaExceeded, match="store_bytes: the limit is 1000"):
        of("lab").launch(STORE, size=5000, **options).result(timeout=SOON)


def test_many_clients_at_a_small_engine_are_all_served_or_answered(engine: Any, of: Callable[[str], Any]) -> None:
    """Each comes again when it is told to."""
    client = of("crowd")
    answers: list[float] = []
    lock = threading.Lock()
    quick = program("async def main(): return 7\n", "quick")

    def one(_: int) -> Any:
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            try:
                return client.launch(quick).result(timeout=SOON)
            except Overloaded as error:
                with lock:
                    answers.append(error.retry_after_s)
                time.sleep(min(error.retry_after_s, 1.0))
        raise AssertionError("it never had a place")

    with ThreadPoolExecutor(24) as threads:
        assert list(threads.map(one, range(48))) == [7] * 48
    assert all(0 < answer <= 600 for answer in answers)


def test_a_hundred_wait_in_one_line_and_the_urgent_one_passes_them_all(ray_cluster: None) -> None:
    """More than the Controller takes Ray calls at a time: they wait at its socket."""
    quick = program("async def main(): return 7\n", "quick")
    with pieray.start(namespace=f"line-{time.time_ns()}", inferlets_per_actor=4, max_actors=1) as engine:
        held = [engine.launch(HOLD) for _ in range(4)]
        with ThreadPoolExecutor(101) as threads:
            low = [threads.submit(engine.launch, quick) for _ in range(100)]
            until(lambda: num_waiting(engine) == 100)
            high = threads.submit(engine.launch, HOLD, priority=1)
            until(lambda: num_waiting(engine) == 101)
            held[0].send("")
            held[0] = high.result(SOON)
            assert [one.done() for one in low] == [False] * 100
            for process in held:
                process.send("")
            assert [one.result(SOON).result(timeout=SOON) for one in low] == [7] * 100
        assert_pages_return(engine, SOON)
