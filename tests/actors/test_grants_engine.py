"""Launches by grants on a running engine: no word to the Controller, and what happens when that is not possible."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engines import assert_pages_return
from programs import program

import pieray
from pieray import ProgramSource
from pieray.errors import Denied, NotFound

SOON = 60.0
SEVEN = program("async def main(): return 7\n", "seven")
HOLD = program("from inferlet import session\nasync def main():\n    await session.receive()\n", "hold")
STORES = program("from inferlet import store\nasync def main():\n    await store.put('k', 'v')\n", "stores")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def fresh(ray_cluster: None) -> Iterator[Callable[..., Any]]:
    started: list[Any] = []

    def start(**settings: Any) -> Any:
        started.append(pieray.start(namespace=f"grants-{time.time_ns()}", **settings))
        return started[-1]

    yield start
    for engine in started:
        assert_pages_return(engine, SOON)
        engine.close()


@pytest.fixture
def handle(engine: Any) -> Iterator[Any]:
    """A client of the shared engine that has been granted nothing yet."""
    with pieray.connect(namespace=engine.config.namespace) as found:
        yield found


class Asked:
    """What a handle asks of its Controller."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.methods: list[str] = []
        begin = engine._calls._begin

        def noted(method: str, *args: Any) -> Any:
            self.methods.append(method)
            return begin(method, *args)

        monkeypatch.setattr(engine._calls, "_begin", noted)


def linked_to(engine: Any) -> list[str]:
    """Actors that the handle has a link to."""
    return [link.endpoint.peer_id.partition("#")[0] for link in engine._links.open_links()]


def hosts(engine: Any) -> list[dict[str, Any]]:
    return [a for a in engine.status()["actors"] if a["role"] == "inferlets"]


def test_a_warm_launch_asks_the_controller_nothing(handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(handle, monkeypatch)
    for _ in range(40):
        assert handle.launch(SEVEN).result(timeout=SOON) == 7
    assert asked.methods == ["grant"]
    with ThreadPoolExecutor(16) as threads:
        held = list(threads.map(lambda _: handle.launch(HOLD), range(16)))
    assert set(asked.methods) == {"grant"}
    ids = {process.id for process in held}
    assert len(ids) == 16
    assert {r["state"] for r in handle.ps() if r["instance_id"] in ids} == {"running"}
    for process in held:
        handle.kill(process.id)
    until(lambda: {r["state"] for r in handle.ps() if r["instance_id"] in ids} == {"killed"})


def test_when_a_grant_ends_the_next_launch_asks_for_another(handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = handle
    placements = engine._launching._placements
    asked = Asked(engine, monkeypatch)
    engine.launch(SEVEN).result(timeout=SOON)
    grant, *_ = placements._grants
    placements._grants[:] = [grant]  # tests before this one may have left several actors
    grant.ends_at = time.monotonic()  # here
    assert engine.launch(SEVEN).result(timeout=SOON) == 7
    assert asked.methods == ["grant", "grant"]
    grant, *_ = placements._grants
    placements._grants[:] = [grant]  # tests before this one may have left several actors
    grant.id = "one that its actor knows nothing of, as after its end there"
    assert engine.launch(SEVEN).result(timeout=SOON) == 7
    assert asked.methods == ["grant", "grant", "door"]  # behind which it is launched
    assert engine.launch(SEVEN).result(timeout=SOON) == 7
    assert asked.methods[3:] == ["grant"]


def test_two_clients_share_the_last_places_and_neither_fails(fresh: Callable[..., Any]) -> None:
    engine = fresh(inferlets_per_actor=4, max_actors=1)
    with pieray.connect(namespace=engine.config.namespace) as second:
        first = [engine.launch(HOLD) for _ in range(2)]
        others = [second.launch(HOLD)]  # what the first holds and does not use is called back
        with ThreadPoolExecutor(2) as threads:
            last = [threads.submit(one.launch, HOLD) for one in (engine, second)]  # for one place
            until(lambda: any(one.done() for one in last))
            time.sleep(0.5)
            assert [one.done() for one in last].count(True) == 1
            first[0].send("")
            first[0].result(timeout=SOON)
            held = [*first[1:], *others, *(one.result(SOON) for one in last)]
        assert hosts(engine)[0]["num_live"] == 4
        for process in held:
            process.send("")
            process.result(timeout=SOON)


def test_an_actor_that_dies_or_freezes_takes_its_grants_with_it(fresh: Callable[..., Any]) -> None:
    engine = fresh(actor_pool=2, suspect_after_s=3.0, replace_after_s=8.0)
    for end in (signal.SIGKILL, signal.SIGSTOP):
        engine.launch(SEVEN).result(timeout=SOON)
        name = engine._launching._placements._grants[0].endpoint.peer_id.partition("#")[0]  # where the next one goes
        pid = next(host["pid"] for host in hosts(engine) if host["name"] == name)
        os.kill(pid, end)
        if end == signal.SIGKILL:  # a launch that it may have begun is an error
            until(lambda name=name: name not in linked_to(engine))  # type: ignore[misc]
        began = time.monotonic()
        assert engine.launch(SEVEN).result(timeout=SOON) == 7
        assert time.monotonic() - began < 15.0
        until(lambda pid=pid: pid not in [h["pid"] for h in hosts(engine)] and len(hosts(engine)) == 2)  # type: ignore[misc]


def test_what_an_installed_program_may_do_is_not_its_clients_to_say(handle: Any) -> None:
    engine = handle
    engine.launch(SEVEN).result(timeout=SOON)
    engine.install(ProgramSource("plain", "plain.py", source=STORES.source, version="1.0.0"))
    with pytest.raises(Denied, match="store"):
        engine.launch("plain", capabilities={"store": True}).result(timeout=SOON)
    engine.uninstall("plain")
    with pytest.raises(NotFound):
        engine.launch(ProgramSource("plain", "plain.py", version="1.0.0"))
    assert engine._launching._placements._grants != []  # it was not for want of one


def test_grants_of_a_client_that_is_gone_come_back(fresh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fresh(inferlets_per_actor=4, max_actors=1)
    with pieray.connect(namespace=engine.config.namespace) as other:
        other.launch(SEVEN).result(timeout=SOON)
    held = [engine.launch(HOLD) for _ in range(4)]
    assert hosts(engine)[0]["num_live"] == 4
    for process in held:
        process.send("")
