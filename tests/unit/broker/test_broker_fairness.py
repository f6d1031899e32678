"""One tenant's flood costs another the work at hand, never the line before it: in the sender, the broker and back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from pieray.broker import flow, service
from pieray.broker.buffer import Bounds
from pieray.broker.flow import Flow, cost_of_message
from pieray.broker.service import BrokerService
from pieray.broker.store import STEP_ROWS, Store
from pieray.errors import PeerLost
from pieray.messages import Completed, Credit, Failed, Message, Pull, Push, StoreGet, StoreNames, StorePut, Subscribe
from pieray.transport import Connection, Listener, connect, serve

TOKEN = "t" * 64
MIB = 1 << 20


class Peer:
    """An actor that sends what it likes, without regard to windows."""

    def __init__(self, door: Listener, name: str) -> None:
        self.answers: dict[int, Message] = {}
        self._changed = threading.Condition()
        self.conn = connect(door.endpoint, self, role="inferlets", peer_id=name, token=TOKEN, timeout_s=5)

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        with self._changed:
            for message in messages:
                if isinstance(message, Completed | Failed):
                    self.answers[message.ticket] = message
                    with contextlib.suppress(PeerLost):
                        conn.send([Credit("hostile", cost_of_message(message))])
            self._changed.notify_all()

    def on_close(self, conn: Connection, error: PeerLost) -> None: ...

    def answer(self, ticket: int) -> Message:
        with self._changed:
            assert self._changed.wait_for(lambda: ticket in self.answers, 20), "no answer"
            return self.answers[ticket]


class Told(Store):
    """Notes whose work it does."""

    def __init__(self) -> None:
        super().__init__()
        self.served: list[str] = []

    def get(self, tenant: str, key: str) -> str:
        self.served.append(tenant)
        return super().get(tenant, key)

    def putting(self, tenant: str, *args: Any, **kwargs: Any) -> Any:
        self.served.append(tenant)
        return super().putting(tenant, *args, **kwargs)

    def _keys(self, tenant: str, *args: Any) -> list[str]:
        self.served.append(tenant)
        return super()._keys(tenant, *args)


class Bench:
    def __init__(self) -> None:
        self.store = Told()
        self.service = BrokerService(Bounds(), self.store)
        self.door = serve(self.service, peer_id="broker", incarnation=1, token=TOKEN, kind="socket")

    def peer(self, name: str) -> Peer:
        return Peer(self.door, name)

    def wait_for(self, tenant: str) -> None:
        """Until a request of the tenant is in line."""
        until(lambda: tenant in self.service._turns._lines)

    def close(self) -> None:
        self.door.close()
        self.service.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench()
    yield found
    found.close()


def put(ticket: int, tenant: str, key: str = "k") -> StorePut:
    return StorePut(ticket, tenant, key, "v", 0, 64 * MIB)


@pytest.mark.parametrize("is_apart", [True, False], ids=["two actors", "one actor"])
def test_a_request_waits_for_the_work_at_hand_and_not_for_a_flood(
    bench: Bench, is_apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SLICE_S", 0.0)
    flood = bench.peer("flood")
    victim = bench.peer("victim") if is_apart else flood
    with bench.service._books:
        flood.conn.send([put(i, "hostile") for i in range(1, 3001)])
        bench.wait_for("hostile")
        victim.conn.send([put(9999, "other")])
        bench.wait_for("other")
    assert isinstance(victim.answer(9999), Completed)
    assert bench.store.served.index("other") <= 3
    until(lambda: len(bench.store.served) == 3001)


def test_a_long_list_of_keys_is_made_in_slices(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "SLICE_S", 0.0)
    for i in range(20 * STEP_ROWS):
        bench.store.put("hostile", f"{i:06}", "", max_bytes=64 * MIB)
    bench.store.served.clear()
    peer, other = bench.peer("peer"), bench.peer("other")
    with bench.service._books:
        peer.conn.send([StoreNames(1, "hostile", "", MIB)])
        until(lambda: bench.service._is_busy)
        other.conn.send([put(2, "other")])
        bench.wait_for("other")
    other.answer(2)
    peer.answer(1)
    assert bench.store.served.count("hostile") > 20
    assert bench.store.served.index("other") <= 4


def test_room_is_made_in_slices_and_costs_who_needs_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant whose store is full of what has expired."""
    monkeypatch.setattr(service, "SLICE_S", 0.0)
    for i in range(20 * STEP_ROWS):
        bench.store.put("hostile", f"{i:06}", "", ttl_s=1e-9, max_bytes=64 * MIB)
    used = bench.store.used_bytes("hostile")
    bench.store.served.clear()
    peer, other = bench.peer("peer"), bench.peer("other")
    finished: list[int] = []
    with bench.service._books:
        peer.conn.send([StorePut(1, "hostile", "new", "x" * (used - 1000), 0, used)])
        until(lambda: bench.service._is_busy)
        other.conn.send([put(2, "other")])
        bench.wait_for("other")
    other.answer(2)
    finished.append(bench.store.used_bytes("hostile"))
    assert isinstance(peer.answer(1), Completed)
    assert finished[0] > used // 2, "the other tenant has waited until all the room was made"


def test_the_death_of_a_peer_with_much_under_way_is_worked_off_in_slices(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SLICE_S", 0.0)
    dying, other = bench.peer("dying"), bench.peer("other")
    dying.conn.send([Pull(i, "hostile", "it", f"q-{i}") for i in range(1, 2001)])
    until(lambda: bench.service.status()["requests"] == 2000)
    with bench.service._books:
        dying.conn.close()
        until(lambda: any(peer.is_gone for peer in bench.service._peers.values()))
        other.conn.send([put(1, "other")])
        bench.wait_for("other")
        withdraw, left = bench.service._exchange.withdraw, []
        monkeypatch.setattr(bench.service._exchange, "withdraw", lambda *args: left.append(0) or withdraw(*args))
        bench.store.served.clear()
        put_first = bench.store.putting
        monkeypatch.setattr(bench.store, "putting", lambda *a, **k: left.append(1) or put_first(*a, **k))
    other.answer(1)
    until(lambda: bench.service.status()["peers"] == 1)
    assert left.count(0) == 2000
    assert left.index(1) <= 4
    assert bench.service.status()["requests"] == 0


def test_many_deadlines_at_once_leave_turns_to_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three thousand broadcasts that wait for one slow reader end together, and each is told."""
    monkeypatch.setattr(service, "MAX_EXPIRED", 8)
    peer = bench.peer("peer")
    peer.conn.send([Subscribe(1, "hostile", "it", "topic", 1)])
    peer.answer(1)
    peer.conn.send([Push(i, "hostile", "it", "q", "x", 0) for i in range(2, 4098)])
    peer.conn.send([Push(i, "hostile", "it", "q", "x", 100) for i in range(5000, 6000)])
    peer.answer(5999)
    until(lambda: len(peer.answers) == 1 + 4096 + 1000)
    codes = {m.code for m in peer.answers.values() if isinstance(m, Failed)}
    assert codes == {"deadline"}


class Panic(BaseException):
    """As a panic of native code arrives in Python."""


def test_a_request_that_panics_fails_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = bench.peer("peer")

    def panic(*_: object) -> None:
        raise Panic("index out of range")

    monkeypatch.setattr(bench.service._exchange, "push", panic)
    peer.conn.send([Push(1, "t", "it", "q", "x", 0), put(2, "t"), StoreGet(3, "t", "k")])
    failed = peer.answer(1)
    assert isinstance(failed, Failed)
    assert (failed.code, "Panic" in failed.message) == ("internal", True)
    assert peer.answer(3) == Completed(3, "v")


# --- windows ------------------------------------------------------------------------------------


class Wire:
    """A connection that keeps what is posted."""

    peer_id = "peer"

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def post(self, messages: list[Message]) -> None:
        self.sent += messages

    def flush(self) -> None: ...


def text(ticket: int, tenant: str, size: int = 0) -> Push:
    return Push(ticket, tenant, "it", "q", "x" * size, 0)


def test_a_tenant_is_never_further_ahead_than_its_window_and_holds_up_nobody() -> None:
    wire = Wire()
    sender = Flow(wire)  # type: ignore[arg-type]
    for i in range(10_000):
        sender.post(text(i, "hostile"))
    ahead = sum(map(cost_of_message, wire.sent))
    assert ahead <= flow.TENANT_WINDOW + cost_of_message(text(0, "hostile"))
    sender.post(text(-1, "other"))
    assert wire.sent[-1] == text(-1, "other")


def test_when_the_whole_window_is_full_the_one_with_least_on_its_way_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow, "WINDOW", 4 * flow.TENANT_WINDOW)
    wire = Wire()
    sender = Flow(wire)  # type: ignore[arg-type]
    for tenant in "abcdefgh":
        for i in range(4):
            sender.post(text(i, tenant, flow.TENANT_WINDOW))
    num_sent = len(wire.sent)
    sender.post(text(0, "other"))
    assert len(wire.sent) == num_sent
    for first in list(wire.sent):
        sender.credited(Credit(first.tenant, cost_of_message(first)))  # type: ignore[attr-defined]
        if "other" in {m.tenant for m in wire.sent}:  # type: ignore[attr-defined]
            break
    after = [m.tenant for m in wire.sent[num_sent:]]  # type: ignore[attr-defined]
    assert len(after) == len(set(after)), "nobody goes twice before the last one has gone once"


@settings(max_examples=examples(60), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_all_that_is_posted_arrives_once_in_the_order_of_its_tenant(seed: int) -> None:
    random = Random(seed)
    wire = Wire()
    sender = Flow(wire)  # type: ignore[arg-type]
    expected: dict[str, list[int]] = {}
    num_credited = 0
    for i in range(400):
        tenant = random.choice("abc")
        sender.post(text(i, tenant, random.choice([0, 100, 50_000])))
        expected.setdefault(tenant, []).append(i)
        while random.random() < 0.4 and num_credited < len(wire.sent):
            sender.credited(Credit(wire.sent[num_credited].tenant, cost_of_message(wire.sent[num_credited])))  # type: ignore[attr-defined]
            num_credited += 1
    while num_credited < len(wire.sent):
        sender.credited(Credit(wire.sent[num_credited].tenant, cost_of_message(wire.sent[num_credited])))  # type: ignore[attr-defined]
        num_credited += 1
    found: dict[str, list[int]] = {}
    for message in wire.sent:
        found.setdefault(message.tenant, []).append(message.ticket)  # type: ignore[attr-defined]
    assert found == expected
    assert sender._excess == 0
    assert not any(lane.waiting or lane.ahead for lane in sender._lanes.values())
