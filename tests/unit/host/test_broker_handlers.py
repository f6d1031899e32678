"""The handlers of `messaging` and `store` on a real Broker service: capabilities, limits, forgotten tickets."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from arrays import u32
from fakes import Bench
from groups import TOKEN, until

from pieray.broker.buffer import Bounds
from pieray.broker.service import BrokerService
from pieray.broker.store import Store
from pieray.config import Limits
from pieray.errors import (
    BadHandle,
    Cancelled,
    DeadlineExceeded,
    Denied,
    InvalidRequest,
    NotFound,
    PeerLost,
    PierayError,
    QuotaExceeded,
    Unsupported,
)
from pieray.host.broker.client import BrokerClient
from pieray.programs.capabilities import Capabilities
from pieray.transport import serve

ALL = Capabilities(messaging=True, store=True)


class Group:
    """A Broker, and inferlets' benches at it, each with a connection of its own."""

    def __init__(self) -> None:
        self.service = BrokerService(Bounds(num_texts=2), Store())
        self.door = serve(self.service, peer_id="broker", incarnation=1, token=TOKEN, kind="inproc")
        self.benches: list[Bench] = []

    def bench(self, limits: Limits | None = None, capabilities: Capabilities = ALL, connect: bool = True) -> Bench:
        bench = Bench(limits, capabilities=capabilities)
        bench.services.broker = BrokerClient(peer_id=f"host-{len(self.benches)}", token=TOKEN)
        if connect:
            bench.services.broker.open(self.door.endpoint)
        self.benches.append(bench)
        return bench

    def close(self) -> None:
        for bench in self.benches:
            bench.services.close()
        self.door.close()
        self.service.close()


@pytest.fixture
def group() -> Iterator[Group]:
    found = Group()
    yield found
    found.close()


def wait(bench: Bench, ticket: int) -> None:
    bench.services.flush()
    until(lambda: bench.handlers.tickets.ready(u32(ticket)) == [ticket])


def text(bench: Bench, ticket: int) -> str:
    wait(bench, ticket)
    return bench.handlers.tickets.take_text(ticket)


def none(bench: Bench, ticket: int) -> None:
    wait(bench, ticket)
    bench.handlers.tickets.take_none(ticket)
    bench.services.flush()


def tokens(bench: Bench, ticket: int) -> list[int]:
    wait(bench, ticket)
    return list(bench.handlers.tickets.take_tokens(ticket))


def bytes_kept(group: Group) -> int:
    for bench in group.benches:
        bench.services.flush()
    kept: int = group.service.status()["bytes"]
    return kept


def test_texts_go_from_inferlet_to_inferlet(group: Group) -> None:
    a, b = group.bench(), group.bench()
    waiting = b.handlers.messaging.pull("q")
    b.services.flush()
    none(a, a.handlers.messaging.push("q", "hello", 1000))
    assert text(b, waiting) == "hello"
    until(lambda: bytes_kept(group) == 0)


def test_a_forgotten_pull_leaves_the_text_to_the_next_before_and_after_it_came(group: Group) -> None:
    a, b = group.bench(), group.bench()
    early = b.handlers.messaging.pull("q")
    b.services.flush()
    b.handlers.tickets.cancel(u32(early))
    none(a, a.handlers.messaging.push("q", "one", 1000))
    late = b.handlers.messaging.pull("q")
    wait(b, late)
    b.handlers.tickets.cancel(u32(late))
    b.services.flush()
    assert text(a, a.handlers.messaging.pull("q")) == "one"


def test_an_inferlet_that_ends_without_taking_leaves_its_texts_to_others(group: Group) -> None:
    a, b = group.bench(), group.bench()
    none(a, a.handlers.messaging.push("q", "one", 1000))
    wait(b, b.handlers.messaging.pull("q"))
    waiting = b.handlers.messaging.pull("other")
    sub = tokens(b, b.handlers.messaging.subscribe("topic"))[0]
    assert sub == 1
    b.services.flush()
    assert group.service.status()["subscriptions"] == 1
    b.parts.close()
    assert text(a, a.handlers.messaging.pull("q")) == "one"
    until(lambda: group.service.status()["subscriptions"] == 0)
    assert not b.tickets.is_open(waiting)
    none(a, a.handlers.messaging.push("other", "two", 1000))
    assert text(a, a.handlers.messaging.pull("other")) == "two"


def test_a_push_without_waiting_arrives_though_the_inferlet_ends(group: Group) -> None:
    a, b = group.bench(), group.bench()
    a.handlers.messaging.push("q", "last words", 0)
    a.parts.close()
    assert text(b, b.handlers.messaging.pull("q")) == "last words"


def test_a_full_queue_is_a_deadline(group: Group) -> None:
    a = group.bench()
    for _ in range(2):
        none(a, a.handlers.messaging.push("q", "x", 0))
    with pytest.raises(DeadlineExceeded, match="queue 'q' is full"):
        none(a, a.handlers.messaging.push("q", "x", 0))


def test_subscriptions_read_in_order_and_close(group: Group) -> None:
    a, b = group.bench(), group.bench()
    (sub,) = tokens(b, b.handlers.messaging.subscribe("topic"))
    none(a, a.handlers.messaging.broadcast("topic", "one", 0))
    none(a, a.handlers.messaging.broadcast("topic", "two", 0))
    with pytest.raises(DeadlineExceeded, match="inferlet it has 2 texts"):
        none(a, a.handlers.messaging.broadcast("topic", "three", 0))
    assert [text(b, b.handlers.messaging.next(sub)) for _ in range(2)] == ["one", "two"]
    waiting = b.handlers.messaging.next(sub)
    b.handlers.messaging.unsubscribe(sub)
    with pytest.raises(Cancelled):
        text(b, waiting)
    for call in (b.handlers.messaging.next, b.handlers.messaging.unsubscribe):
        with pytest.raises(BadHandle, match="subscription 1 is not open"):
            call(sub)
        with pytest.raises(BadHandle):
            call(0)


def test_a_forgotten_subscribe_holds_nothing(group: Group) -> None:
    a = group.bench()
    early, late = a.handlers.messaging.subscribe("topic"), a.handlers.messaging.subscribe("topic")
    a.handlers.tickets.cancel(u32(early))
    wait(a, late)
    a.handlers.tickets.cancel(u32(late))
    a.services.flush()
    until(lambda: group.service.status()["subscriptions"] == 0)
    assert len(a.handlers.messaging._subscriptions) == 0


def test_without_the_capability_all_is_denied(group: Group) -> None:
    h = group.bench(capabilities=Capabilities()).handlers
    for call in (
        lambda: h.messaging.push("q", "x", 0),
        lambda: h.messaging.pull("q"),
        lambda: h.messaging.broadcast("q", "x", 0),
        lambda: h.messaging.subscribe("q"),
        lambda: h.messaging.next(1),
        lambda: h.messaging.unsubscribe(1),
        lambda: h.store.get("k"),
        lambda: h.store.put("k", "v", 0),
        lambda: h.store.put_if("k", "", True, "v"),
        lambda: h.store.delete("k"),
        lambda: h.store.names(""),
    ):
        with pytest.raises(Denied, match=r"\[capabilities\] \w+ = true"):
            call()
    assert len(h.tickets._tickets) == 0


def test_limits_name_themselves(group: Group) -> None:
    limits = Limits(tickets=3, subscriptions=1, message_bytes=10, mailbox_bytes=15, store_bytes=100)
    h = group.bench(limits).handlers
    for name, error in (("", "given 0"), ("x" * 513, "given 513"), ("é" * 300, "given 600")):
        for call in (h.messaging.pull, h.messaging.subscribe, h.store.get, h.store.delete):
            with pytest.raises(InvalidRequest, match=f"from 1 to 512 bytes; {error}"):
                call(name)
    for call in (
        lambda: h.messaging.push("q", "x" * 11, 0),
        lambda: h.messaging.broadcast("q", "x" * 11, 0),
        lambda: h.store.put("k", "x" * 11, 0),
        lambda: h.store.put_if("k", "x" * 11, False, ""),
    ):
        with pytest.raises(QuotaExceeded, match="message_bytes: the limit is 10; given 11"):
            call()
    h.messaging.push("q", "x" * 10, 0)
    with pytest.raises(QuotaExceeded, match="mailbox_bytes: the limit is 15; 10 are on their way, 10 more"):
        h.messaging.push("q", "x" * 10, 0)
    h.messaging.subscribe("topic")
    with pytest.raises(QuotaExceeded, match="subscriptions: the limit is 1"):
        h.messaging.subscribe("topic")
    h.messaging.pull("other")
    with pytest.raises(QuotaExceeded, match="tickets"):
        h.messaging.pull("other")


def test_forgotten_requests_count_until_the_broker_has_answered(group: Group) -> None:
    bench = group.bench(Limits(tickets=3))
    for _ in range(3):
        bench.handlers.tickets.cancel(u32(bench.handlers.messaging.pull("q")))
    with pytest.raises(QuotaExceeded, match="tickets: the limit is 3 requests at the Broker"):
        bench.handlers.messaging.pull("q")
    bench.services.flush()
    until(lambda: group.service.status()["requests"] == 0)
    until(lambda: bench.handlers.messaging._broker._num_calls == 0)
    bench.handlers.messaging.pull("q")


def test_a_request_forgotten_before_the_broker_is_there_is_never_made(group: Group) -> None:
    bench = group.bench(connect=False)
    gone, stays = bench.handlers.messaging.pull("q"), bench.handlers.messaging.pull("q")
    sub = bench.handlers.messaging.subscribe("topic")
    bench.handlers.tickets.cancel(u32(gone))
    assert bench.services.broker is not None
    bench.services.broker.open(group.door.endpoint)
    (handle,) = tokens(bench, sub)
    assert group.service.status()["requests"] == 1
    none(bench, bench.handlers.messaging.push("q", "x", 0))
    assert text(bench, stays) == "x"
    assert bench.handlers.messaging._broker._num_calls == 0
    none(bench, bench.handlers.messaging.broadcast("topic", "y", 0))
    assert text(bench, bench.handlers.messaging.next(handle)) == "y"


def test_the_store_is_the_tenants(group: Group) -> None:
    a, b = group.bench(), group.bench(Limits(store_bytes=200))
    none(a, a.handlers.store.put("k", "v", 0))
    assert text(b, b.handlers.store.get("k")) == "v"
    assert tokens(b, b.handlers.store.put_if("k", "v", False, "w")) == [1]
    assert tokens(a, a.handlers.store.put_if("k", "v", False, "x")) == [0]
    assert tokens(a, a.handlers.store.put_if("k", "", True, "x")) == [0]
    assert json.loads(text(a, a.handlers.store.names(""))) == ["k"]
    with pytest.raises(QuotaExceeded, match="store_bytes: the limit is 200"):
        none(b, b.handlers.store.put("long", "x" * 200, 0))
    assert tokens(a, a.handlers.store.delete("k")) == [1]
    assert tokens(a, a.handlers.store.delete("k")) == [0]
    with pytest.raises(NotFound):
        text(a, a.handlers.store.get("k"))


def test_a_dead_broker_is_an_answer(group: Group) -> None:
    bench = group.bench()
    (sub,) = tokens(bench, bench.handlers.messaging.subscribe("topic"))
    waiting = bench.handlers.messaging.pull("q")
    bench.services.flush()
    group.door.close()
    with pytest.raises(PeerLost, match="Broker is gone"):
        text(bench, waiting)
    until(lambda: not bench.services.broker.is_connected)  # type: ignore[union-attr]
    num_tickets = len(bench.tickets)
    with pytest.raises(PeerLost, match="another one is on its way"):
        bench.handlers.store.get("k")
    assert len(bench.tickets) == num_tickets
    assert bench.handlers.store._broker._num_calls == 0
    group.door = serve(group.service, peer_id="broker", incarnation=2, token=TOKEN, kind="inproc")
    assert bench.services.broker is not None
    bench.services.broker.open(group.door.endpoint)
    with pytest.raises(PeerLost, match="subscribe again"):
        bench.handlers.messaging.next(sub)
    bench.handlers.messaging.unsubscribe(sub)
    none(bench, bench.handlers.messaging.push("q", "x", 0))


def test_a_silent_broker_is_a_deadline(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pieray.host.handlers.store.ANSWER_S", 0.05)
    bench = group.bench()
    with group.service._books:
        ticket = bench.handlers.store.get("k")
        wait(bench, ticket)
        with pytest.raises(DeadlineExceeded, match="did not answer within"):
            bench.handlers.tickets.take_text(ticket)


def test_an_engine_without_a_broker_says_so() -> None:
    h = Bench(capabilities=ALL).handlers
    for call in (lambda: h.messaging.pull("q"), lambda: h.store.get("k"), lambda: h.messaging.subscribe("t")):
        with pytest.raises(Unsupported, match="no Broker"):
            call()
    with pytest.raises(PierayError):
        h.messaging.next(1)
