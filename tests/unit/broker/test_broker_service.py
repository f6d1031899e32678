"""The Broker's service and its clients over real connections."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pieray.broker import flow
from pieray.broker.buffer import Bounds
from pieray.broker.service import BrokerService
from pieray.broker.store import Store
from pieray.errors import Cancelled, DeadlineExceeded, NotFound, PeerLost, PierayError
from pieray.host.broker.client import BrokerClient
from pieray.messages import Broadcast, Message, Next, Pull, Push, Settle, StoreGet, StorePut, Subscribe, Withdraw
from pieray.transport import Listener, serve

TOKEN = "t" * 64


class Asked:
    """A request and, in time, its answer."""

    def __init__(self) -> None:
        self.number = 0
        self._done = threading.Event()
        self._result: Any = None

    def answered(self, value: Any, error: Any) -> None:
        assert not self._done.is_set(), "one request, one answer"
        self._result = error if error is not None else value
        self._done.set()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def result(self, timeout_s: float = 10.0) -> Any:
        assert self._done.wait(timeout_s), "no answer"
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class Broker:
    """A service behind a door, and clients of it."""

    def __init__(self, kind: str, store: Store | None = None, **bounds: int) -> None:
        self.service = BrokerService(Bounds(**bounds), store or Store())
        self.kind = kind
        self.door: Listener = self._serve(self.service)
        self.clients: list[BrokerClient] = []

    def _serve(self, service: BrokerService) -> Listener:
        return serve(service, peer_id="broker", incarnation=1, token=TOKEN, kind=self.kind)

    def client(self) -> BrokerClient:
        client = BrokerClient(peer_id=f"host-{len(self.clients)}", token=TOKEN, timeout_s=5)
        client.open(self.door.endpoint)
        self.clients.append(client)
        return client

    def die(self) -> None:
        self.door.close()

    def replace(self) -> None:
        self.service = BrokerService(Bounds(), Store())
        self.door = self._serve(self.service)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.door.close()
        self.service.close()


@pytest.fixture(params=["socket", "inproc"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    found = Broker(request.param, num_texts=2)
    yield found
    found.close()


def ask(client: BrokerClient, make: Callable[[int], Message]) -> Asked:
    asked = Asked()

    def message(number: int) -> Message:
        asked.number = number
        return make(number)

    client.ask(message, asked.answered)
    client.flush()
    return asked


def push(client: BrokerClient, text: str, timeout_ms: int = 60_000, queue: str = "q") -> Asked:
    return ask(client, lambda n: Push(n, "t", "pusher", queue, text, timeout_ms))


def pull(client: BrokerClient, queue: str = "q") -> Asked:
    return ask(client, lambda n: Pull(n, "t", "puller", queue))


def tell(client: BrokerClient, message: Message) -> None:
    client.tell(message)
    client.flush()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_text_goes_from_one_client_to_the_other(broker: Broker) -> None:
    a, b = broker.client(), broker.client()
    waiting = pull(b)
    assert push(a, "hello").result() is None
    assert waiting.result() == "hello"
    tell(b, Settle(waiting.number, "t", True))
    until(lambda: broker.service.status()["bytes"] == 0)


def test_a_push_into_a_full_queue_is_told_so_in_time(broker: Broker) -> None:
    a = broker.client()
    for i in range(2):
        push(a, f"m{i}").result()
    with pytest.raises(DeadlineExceeded, match="full"):
        push(a, "now", 0).result()
    soon = push(a, "soon", 50)
    later = push(a, "later")
    with pytest.raises(DeadlineExceeded, match="full"):
        soon.result()
    assert not later.is_done
    first = pull(a)
    assert first.result() == "m0"
    tell(a, Settle(first.number, "t", True))
    assert later.result() is None


def test_a_withdrawn_pull_is_answered_and_loses_nothing(broker: Broker) -> None:
    a, b = broker.client(), broker.client()
    waiting = pull(b)
    tell(b, Withdraw(waiting.number, "t"))
    with pytest.raises(Cancelled):
        waiting.result()
    push(a, "one").result()
    given = pull(b)
    assert given.result() == "one"
    tell(b, Settle(given.number, "t", False))
    assert pull(a).result() == "one"


def test_a_client_that_dies_gives_back_what_it_had(broker: Broker) -> None:
    a, b, c = broker.client(), broker.client(), broker.client()
    push(a, "one").result()
    assert pull(b).result() == "one"
    waiting = pull(c)
    b.close()
    assert waiting.result() == "one"
    until(lambda: broker.service.status()["peers"] == 2)


def test_a_broadcast_waits_for_the_slow_and_for_the_dead_no_longer(broker: Broker) -> None:
    a, b, slow = broker.client(), broker.client(), broker.client()
    for client in (b, slow):
        ask(client, lambda n: Subscribe(n, "t", "reader", "topic", 1)).result()

    def broadcast(text: str) -> Asked:
        return ask(a, lambda n: Broadcast(n, "t", "a", "topic", text, 60_000))

    sent = [broadcast(f"m{i}") for i in range(3)]
    for i in range(2):
        assert sent[i].result() is None
        got = ask(b, lambda n: Next(n, "t", 1))
        assert got.result() == f"m{i}"
        tell(b, Settle(got.number, "t", True))
    last = ask(b, lambda n: Next(n, "t", 1))
    time.sleep(0.05)
    assert not last.is_done
    slow.close()
    assert last.result() == "m2"
    assert sent[2].result() is None


def test_when_the_broker_dies_all_who_wait_are_told_and_the_next_one_serves_them(broker: Broker) -> None:
    a, b = broker.client(), broker.client()
    waiting = [pull(b) for _ in range(3)]
    until(lambda: broker.service.status()["requests"] == 3)
    broker.die()
    for asked in waiting:
        with pytest.raises(PeerLost, match="Broker is gone"):
            asked.result()
    until(lambda: _is_refused(a))
    broker.replace()
    for client in (a, b):
        client.open(broker.door.endpoint)
    push(a, "again").result()
    assert pull(b).result() == "again"


def _is_refused(client: BrokerClient) -> bool:
    try:
        push(client, "nobody")
    except PeerLost:
        return True
    return False


def test_what_is_asked_before_the_first_broker_is_there_waits_for_it(broker: Broker) -> None:
    early = BrokerClient(peer_id="early", token=TOKEN, timeout_s=5)
    broker.clients.append(early)
    pushes = [push(early, f"m{i}") for i in range(2)]
    assert not any(p.is_done for p in pushes)
    early.open(broker.door.endpoint)
    assert [p.result() for p in pushes] == [None, None]
    assert pull(early).result() == "m0"
    never = BrokerClient(peer_id="never", token=TOKEN)
    asked = push(never, "x")
    never.close()
    with pytest.raises(PeerLost):
        asked.result()


def test_a_connection_that_breaks_is_made_again(broker: Broker) -> None:
    a = broker.client()
    generation = a.generation
    assert a._link is not None
    a._link.flow.conn.close("a cut cable")
    until(lambda: a.generation > generation and a.is_connected)
    assert push(a, "through").result() is None


def test_the_store_answers(broker: Broker) -> None:
    a, b = broker.client(), broker.client()
    ask(a, lambda n: StorePut(n, "t", "k", "v", 0, 1000)).result()
    assert ask(b, lambda n: StoreGet(n, "t", "k")).result() == "v"
    with pytest.raises(NotFound):
        ask(b, lambda n: StoreGet(n, "other", "k")).result()


@pytest.mark.slow
def test_more_than_a_connection_holds_travels_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 MiB of texts, all asked for at once, in both directions: neither end gives the other up as too slow."""
    monkeypatch.setattr(flow, "WINDOW", 1 << 20)
    monkeypatch.setattr(flow, "TENANT_WINDOW", 1 << 19)
    monkeypatch.setattr(flow, "GRANT", 1 << 17)
    broker = Broker("socket", num_texts=4096, num_bytes=1 << 30, tenant_bytes=1 << 30)
    try:
        a, b = broker.client(), broker.client()
        text = "x" * (1 << 20)
        pulls = [pull(b) for _ in range(300)]
        pushes = [push(a, text) for _ in range(300)]
        assert all(p.result(60) is None for p in pushes)
        for p in pulls:
            assert p.result(60) == text
            tell(b, Settle(p.number, "t", True))
        until(lambda: broker.service.status()["bytes"] == 0)
        assert broker.service.status()["peers"] == 2
    finally:
        broker.close()


# --- the store -------------------------------------------------------------------------------------


def flood(client: BrokerClient, count: int, text: str) -> list[Asked]:
    """So many puts of one tenant, sent at once."""
    asked = [Asked() for _ in range(count)]
    for i, one in enumerate(asked):
        client.ask(lambda n, i=i: StorePut(n, "t", f"k{i}", text, 0, 1 << 30), one.answered)
    client.flush()
    return asked


def test_puts_that_come_together_are_committed_together(tmp_path: Path) -> None:
    broker = Broker("socket", Store(str(tmp_path / "s")))
    for asked in flood(broker.client(), 500, "v"):
        assert asked.result() is None
    pages = (tmp_path / "s-wal").stat().st_size / 4096  # each commit writes at least one
    assert pages < 250
    broker.close()
    assert Store(str(tmp_path / "s")).get("t", "k499") == "v"


def test_whose_put_was_answered_has_it_though_the_disk_is_full(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s"))
    store._db.execute("PRAGMA max_page_count = 200")
    broker = Broker("socket", store)
    failures = []
    kept = set()
    for i, asked in enumerate(flood(broker.client(), 500, "x" * 4000)):
        try:
            asked.result()
            kept.add(f"k{i}")
        except PierayError as error:
            failures.append(error.message)
    assert kept
    assert failures
    assert all("full" in message for message in failures)
    store.check()
    broker.close()
    again = Store(str(tmp_path / "s"))
    assert set(json.loads(again.names("t", "", 1 << 20))) == kept
    again.check()
