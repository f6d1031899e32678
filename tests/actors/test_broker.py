"""Messages and the store between inferlets in different actors, and what happens when the Broker dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import assert_pages_return
from programs import GENERATE, program

import pieray
from pieray.errors import ConfigError, DeadlineExceeded, Denied, PeerLost, PierayError, QuotaExceeded

BOTH = {"messaging": True, "store": True}

PULL = program(
    """
from inferlet import messaging, session
async def main(queue="q", count=1):
    session.send("ready")
    return [await messaging.pull(queue) for _ in range(count)]
""",
    "pull",
)
PUSH = program(
    """
from inferlet import messaging
async def main(texts, queue="q", timeout=30):
    for text in texts:
        await messaging.push(queue, text, timeout)
""",
    "push",
)
READ = program(
    """
from inferlet import messaging, session
async def main(topic="topic", count=1, wait=False):
    async with messaging.subscribe(topic) as texts:
        session.send("subscribed")
        if wait:
            await session.receive()
        return [await texts.next() for _ in range(count)]
""",
    "read",
)
BROADCAST = program(
    """
from inferlet import messaging
async def main(texts, topic="topic", timeout=30):
    for text in texts:
        await messaging.broadcast(topic, text, timeout)
""",
    "broadcast",
)
STORE = program(
    """
from inferlet import store
async def main(steps):
    return [await getattr(store, name)(*args) for name, *args in steps]
""",
    "store",
)


@pytest.fixture(scope="module")
def apart(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine that gives each inferlet an actor of its own, and keeps its store in a file."""
    path = tmp_path_factory.mktemp("store") / "store.sqlite"
    with pieray.start(
        namespace="apart", actor_pool=2, inferlets_per_actor=1, store_path=str(path), limits={"queue_bytes": 4096}
    ) as engine:
        yield engine
        assert_pages_return(engine)


def ready(process: Any) -> Any:
    next(iter(process))
    return process


def broker(engine: Any) -> dict[str, Any]:
    (found,) = [a for a in engine.status()["actors"] if a["role"] == "broker"]
    return dict(found)


def run(engine: Any, source: Any, **arguments: Any) -> Any:
    return engine.launch(source, arguments, capabilities=BOTH).result(timeout=60)


def test_a_text_crosses_actors(apart: Any) -> None:
    pulling = ready(apart.launch(PULL, capabilities=BOTH, count=3))
    pushing = apart.launch(PUSH, capabilities=BOTH, texts=["a", "b", "é😀"])
    actors = {pulling._link.endpoint.peer_id, pushing._link.endpoint.peer_id}
    assert len(actors) == 2
    assert pushing.result(timeout=60) is None
    assert pulling.result(timeout=60) == ["a", "b", "é😀"]


def test_every_subscriber_gets_every_text_in_order(apart: Any) -> None:
    texts = [str(i) for i in range(20)]
    readers = [ready(apart.launch(READ, capabilities=BOTH, count=20)) for _ in range(2)]
    run(apart, BROADCAST, texts=texts)
    assert [r.result(timeout=60) for r in readers] == [texts, texts]


def test_a_reader_that_does_not_read_holds_broadcasters_up_until_their_deadline(apart: Any) -> None:
    reader = ready(apart.launch(READ, capabilities=BOTH, count=1, wait=True))
    with pytest.raises(DeadlineExceeded, match=rf"inferlet {reader.id} has 1 texts"):
        run(apart, BROADCAST, texts=["x" * 3000, "y" * 3000], timeout=0.2)
    reader.send("go")
    assert reader.result(timeout=60) == ["x" * 3000]


def test_a_full_queue_holds_a_pusher_back_until_somebody_pulls(apart: Any) -> None:
    with pytest.raises(DeadlineExceeded, match="queue 'full' is full"):
        run(apart, PUSH, texts=["x" * 3000] * 2, queue="full", timeout=0.1)
    pushing = apart.launch(PUSH, capabilities=BOTH, texts=["y" * 3000] * 3, queue="full")
    assert run(apart, PULL, queue="full", count=4) == ["x" * 3000] + ["y" * 3000] * 3
    pushing.result(timeout=60)


def test_an_inferlet_that_is_killed_leaves_the_texts_it_waited_for(apart: Any) -> None:
    waiting = ready(apart.launch(PULL, capabilities=BOTH, queue="left", count=2))
    run(apart, PUSH, queue="left", texts=["one"])
    waiting.kill()
    with pytest.raises(PierayError):
        waiting.result(timeout=30)
    time.sleep(0.2)
    run(apart, PUSH, queue="left", texts=["two"])
    assert run(apart, PULL, queue="left") == ["two"]


def test_an_actor_that_is_killed_leaves_the_texts_it_waited_for(apart: Any) -> None:
    hold = program(
        "from inferlet import messaging, session\nfrom inferlet import _host\nasync def main():\n"
        "    ticket = messaging.pull_ticket('kept')\n    _host.tickets.wait([ticket.id], -1)\n"
        "    session.send('given, not taken')\n    await session.receive()"
    )
    run(apart, PUSH, queue="kept", texts=["one"])
    holding = ready(apart.launch(hold, capabilities=BOTH))
    peer = holding._link.endpoint.peer_id
    pid = next(a["pid"] for a in apart.status()["actors"] if f"{a['name']}#{a['incarnation']}" == peer)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(PeerLost):
        holding.result(timeout=30)
    assert run(apart, PULL, queue="kept") == ["one"]


def test_tenants_are_apart(apart: Any) -> None:
    run(apart, PUSH, queue="mine", texts=["mine"])
    run(apart, STORE, steps=[["put", "mine", "mine"]])
    apart.tenant = "other"
    try:
        assert run(apart, STORE, steps=[["get", "mine", ""], ["names"]]) == ["", []]
        peek = program("from inferlet import messaging\nasync def main():\n    await messaging.pull('mine', 0.2)")
        with pytest.raises(DeadlineExceeded, match="nothing came to queue 'mine'"):
            run(apart, peek)
    finally:
        apart.tenant = "local"
    assert run(apart, PULL, queue="mine") == ["mine"]


def test_without_the_capability_it_is_denied(apart: Any) -> None:
    for source, arguments in ((PULL, {}), (STORE, {"steps": [["get", "k"]]})):
        with pytest.raises(Denied, match="manifest"):
            apart.launch(source, arguments).result(timeout=60)


def test_the_store_outlives_inferlets_and_counts_for_the_tenant(apart: Any) -> None:
    steps = [["put", "a", "1"], ["put_json", "b", {"x": [1]}], ["put_if", "a", "1", "2"], ["put_if", "c", None, "3"]]
    assert run(apart, STORE, steps=steps) == [None, None, True, True]
    assert run(apart, STORE, steps=[["get", "a"], ["get_json", "b"], ["delete", "c"], ["get", "c", "-"]]) == [
        "2",
        {"x": [1]},
        True,
        "-",
    ]
    process = apart.launch(STORE, steps=[["put", "d", "x" * 100]], capabilities=BOTH, limits={"store_bytes": 150})
    with pytest.raises(QuotaExceeded, match="store_bytes: the limit is 150"):
        process.result(timeout=60)


FLOODS = {
    "pushes": "messaging.push_ticket('flood', 'x' * 100000)",
    "waiting pushes": "messaging.push_ticket('flood', 'x')",
    "pulls": "messaging.pull_ticket('nothing')",
    "forgotten pulls": "messaging.pull_ticket('nothing').cancel()",
    "broadcasts": "messaging.broadcast_ticket('flood', 'x' * 100000)",
    "subscriptions": "messaging.subscribe('flood')._ask()",
    "puts": "_host.store.put(str(i), 'x' * 100000, 0)",
    "forgotten names": "_host.tickets.cancel([_host.store.names('')])",
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_ends_its_inferlet_alone(apart: Any, flood: str) -> None:
    source = program(
        "from inferlet import _host, messaging, tickets\nasync def main():\n    for i in range(10**9):\n"
        f"        {FLOODS[flood]}\n        if i % 64 == 0: tickets.wait([], 1)\n"
    )
    apart.tenant = "hostile"
    try:
        hostile = apart.launch(source, capabilities=BOTH, limits={"cpu_time_s": 1.0, "store_bytes": 1 << 20})
    finally:
        apart.tenant = "local"
    waiting = ready(apart.launch(PULL, capabilities=BOTH, queue="calm"))
    with pytest.raises(QuotaExceeded, match="tickets|mailbox_bytes|subscriptions|cpu_time_s"):
        hostile.result(timeout=60)
    run(apart, PUSH, queue="calm", texts=["still here"])
    assert waiting.result(timeout=30) == ["still here"]
    kept = broker(apart)  # which checks its books
    assert kept["bytes"] <= apart.config.limits.broker_bytes
    assert kept["subscriptions"] == 0


def test_many_workers_do_each_task_once(apart: Any) -> None:
    prompts = [f"{a}+{b}=" for a in range(3, 7) for b in range(10, 13)]
    workers = [apart.launch("worker-queue", role="worker", job="j", capabilities=BOTH) for _ in range(3)]
    answers = apart.launch(
        "worker-queue", role="producer", job="j", prompts=prompts, workers=3, capabilities=BOTH
    ).result(timeout=120)
    counts = [w.result(timeout=60) for w in workers]
    assert sum(counts) == len(prompts) == len(answers)
    assert min(counts) >= 1  # work was shared
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = apart.launch("text-completion", prompt=prompt, max_tokens=8).result(timeout=60)
        assert answer["text"] == alone["text"]
    assert broker(apart)["requests"] == 0


def test_a_dead_broker_answers_who_waits_and_another_keeps_the_store(apart: Any) -> None:
    run(apart, STORE, steps=[["put", "kept", "yes"]])
    run(apart, PUSH, queue="lost", texts=["one"])
    waiting = ready(apart.launch(PULL, capabilities=BOTH, queue="never"))
    reader = ready(apart.launch(READ, capabilities=BOTH))
    died = broker(apart)["pid"]
    os.kill(died, signal.SIGKILL)
    for process in (waiting, reader):
        with pytest.raises(PeerLost, match="Broker is gone"):
            process.result(timeout=10)
    deadline = time.monotonic() + 30
    while True:
        try:
            found = broker(apart)["pid"]
        except (PierayError, ValueError):
            found = died
        if found != died:
            break
        assert time.monotonic() < deadline, "no new broker"
        time.sleep(0.05)
    deadline = time.monotonic() + 30
    while True:
        try:
            assert run(apart, STORE, steps=[["get", "kept"]]) == ["yes"]
            break
        except PeerLost:
            assert time.monotonic() < deadline, "no new connection"
            time.sleep(0.1)
    pulling = ready(apart.launch(PULL, capabilities=BOTH, queue="lost"))
    run(apart, PUSH, queue="lost", texts=["two"])
    assert pulling.result(timeout=30) == ["two"]
    assert apart.launch(GENERATE, prompt="12+7=").result(timeout=60)
    assert apart.status()["failure"] is None


def test_a_store_file_outlives_the_engine(ray_cluster: None, tmp_path: Path) -> None:
    for number, steps in enumerate(([["put", "k", "v"]], [["get", "k"]])):
        with pieray.start(namespace=f"store-{number}", store_path=str(tmp_path / "s")) as engine:
            result = run(engine, STORE, steps=steps)
    assert result == ["v"]


def test_an_engine_whose_store_cannot_be_opened_does_not_start(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="store_path"):
        pieray.start(namespace="no-store", store_path=str(tmp_path))


def test_debaters_hear_each_other(engine: Any) -> None:
    question = "12+7=? Think step by step."
    result = engine.launch("debate", question=question, debaters=3, rounds=2, capabilities=BOTH).result(timeout=60)
    assert result["answer"] == "19"
    assert [sorted(said) for said in result["rounds"]] == [["0", "1", "2"]] * 2
    names = ("x", "y")
    apart = [
        engine.launch("debate", question=question, debaters=2, topic="talk", name=name, seed=i, capabilities=BOTH)
        for i, name in enumerate(names)
    ]
    said = [json.dumps(p.result(timeout=60)["rounds"], sort_keys=True) for p in apart]
    assert said[0] == said[1]  # all have heard the same
