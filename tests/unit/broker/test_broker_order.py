"""The order of requests holds while the link comes up and when it breaks; nothing is doubled or silently lost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from pieray.broker.buffer import Bounds
from pieray.broker.service import BrokerService
from pieray.broker.store import Store
from pieray.errors import PeerLost, PierayError
from pieray.host.broker import client as broker_client
from pieray.host.broker.client import BrokerClient
from pieray.messages import Message, Pull, Push, Settle, Subscribe, Unsubscribe
from pieray.transport import Connection, Listener, connect, redial, serve

TOKEN = "t" * 64
NUM_INFERLETS = 4


class Door:
    """A broker with room for everything."""

    def __init__(self, kind: str) -> None:
        self.service = BrokerService(Bounds(num_texts=1 << 20, num_bytes=1 << 30, tenant_bytes=1 << 30), Store())
        self.listener: Listener = serve(self.service, peer_id="broker", incarnation=1, token=TOKEN, kind=kind)

    def texts(self, queue: str) -> list[str]:
        """All that has arrived in a queue, in its order."""
        exchange = self.service._exchange
        with self.service._books:
            found = exchange._queues.get(("t", queue))
            return [] if found is None else [text.text for text in found._buffer._texts]

    def wait_idle(self) -> None:
        deadline = time.monotonic() + 20
        while self.service._turns or any(p.num_queued for p in list(self.service._peers.values())):
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def close(self) -> None:
        self.listener.close()
        self.service.close()


@pytest.fixture(params=["socket", "inproc"])
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    found = Door(request.param)
    yield found
    found.close()


def push(number: int, queue: str, text: str) -> Push:
    return Push(number, "t", queue, queue, text, 0)


def test_nothing_overtakes_what_waited_for_the_link(door: Door) -> None:
    """While what was kept is being sent, another thread pushes: it comes behind all of that."""
    client = BrokerClient(peer_id="host", token=TOKEN)
    answered: Counter[int] = Counter()
    begun, threads = threading.Event(), []

    def late() -> None:
        client.ask(lambda n: push(n, "q", "late"), lambda *_: answered.update([-1]))

    def make(number: int, i: int) -> Message:
        if i == 0:
            threads.append(threading.Thread(target=late))
            threads[0].start()
            begun.set()
            time.sleep(0.1)  # time enough to overtake
        return push(number, "q", str(i))

    for i in range(2000):
        client.ask(lambda n, i=i: make(n, i), lambda *_, i=i: answered.update([i]))  # type: ignore[misc]
    client.open(door.listener.endpoint)
    assert begun.wait(10)
    threads[0].join()
    client.flush()
    deadline = time.monotonic() + 20
    while len(answered) < 2001:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert door.texts("q") == [*map(str, range(2000)), "late"]
    assert set(answered.values()) == {1}
    client.close()


def test_what_is_given_up_before_the_link_is_there_leaves_nothing_at_the_broker(door: Door) -> None:
    """A subscription that is closed before it could be made is not made for good."""
    client = BrokerClient(peer_id="host", token=TOKEN)
    done = threading.Event()
    client.ask(lambda n: Subscribe(n, "t", "it", "topic", 7), lambda *_: done.set())
    client.tell(Unsubscribe("t", 7))
    client.open(door.listener.endpoint)
    assert done.wait(10)
    door.wait_idle()
    assert door.service.status()["subscriptions"] == 0
    client.close()


class Inferlet(threading.Thread):
    """Pushes numbers in order, and notes what became of each."""

    def __init__(self, client: BrokerClient, name: str, seed: int, count: int) -> None:
        super().__init__(name=name)
        self.outcomes: dict[int, list[Any]] = {}
        self._client = client
        self._random = Random(seed)
        self._count = count

    def run(self) -> None:
        for i in range(self._count):
            outcome = self.outcomes[i] = []
            try:
                self._client.ask(
                    lambda n, i=i: push(n, self.name, str(i)),  # type: ignore[misc]
                    lambda value, error, outcome=outcome: outcome.append(error or value),
                )  # type: ignore[misc]
            except PierayError as error:
                outcome.append(error)
            if self._random.random() < 0.1:
                self._client.flush()
                time.sleep(self._random.random() * 0.002)
        self._client.flush()


@settings(max_examples=examples(15), deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["socket", "inproc"]))
def test_any_interleaving_of_pushes_links_and_breaks_keeps_each_inferlets_order(seed: int, kind: str) -> None:
    random = Random(seed)
    pause_s, redial.FIRST_PAUSE_S = redial.FIRST_PAUSE_S, 0.005
    door = Door(kind)
    client = BrokerClient(peer_id="host", token=TOKEN)
    inferlets = [Inferlet(client, f"it-{i}", random.randrange(2**32), 300) for i in range(NUM_INFERLETS)]
    try:
        for inferlet in inferlets:
            inferlet.start()
        time.sleep(random.random() * 0.02)
        client.open(door.listener.endpoint)
        for _ in range(random.randrange(4)):
            time.sleep(random.random() * 0.03)
            if (link := client._link) is not None:
                link.flow.conn.close("a cut cable")
        for inferlet in inferlets:
            inferlet.join()
        deadline = time.monotonic() + 20
        while not all(outcome for it in inferlets for outcome in it.outcomes.values()):
            client.flush()
            assert time.monotonic() < deadline, "a request has no answer"
            time.sleep(0.005)
        door.wait_idle()
        for inferlet in inferlets:
            arrived = [int(text) for text in door.texts(inferlet.name)]
            assert arrived == sorted(set(arrived)), "overtaken, or doubled"
            for i, outcome in inferlet.outcomes.items():
                assert len(outcome) == 1, "one request, one answer"
                assert outcome[0] is None or isinstance(outcome[0], PeerLost)
                assert outcome[0] is not None or i in arrived, "lost without a word"
        door.service.status()
    finally:
        redial.FIRST_PAUSE_S = pause_s
        client.close()
        door.close()


class Raw:
    """A peer that speaks for itself."""

    def __init__(self) -> None:
        self.got: list[Message] = []

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        self.got += messages

    def on_close(self, conn: Connection, error: PeerLost) -> None: ...


def test_what_an_old_connection_still_brings_does_not_come_behind_the_new_one(door: Door) -> None:
    """The broker has not heard of the first one's end when the second comes."""

    def dial(generation: int) -> Connection:
        return connect(
            door.listener.endpoint, Raw(), role="inferlets", peer_id=f"host/{generation}", token=TOKEN, timeout_s=5
        )

    first = dial(1)
    first.send([push(1, "q", "a")])
    deadline = time.monotonic() + 10
    while door.texts("q") != ["a"]:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    first.send([Pull(2, "t", "it", "q")])
    door.wait_idle()
    second = dial(2)
    second.send([push(3, "q", "b")])
    with contextlib.suppress(PeerLost):
        first.send([push(4, "q", "late")])  # before the new one, if the broker has not heard of that yet, or never
    while (found := door.texts("q")) not in (["a", "b"], ["a", "late", "b"]):  # "a" was given and not taken: it is back
        assert time.monotonic() < deadline, found
        time.sleep(0.002)
    assert not first.is_open or _closes(first)
    second.send([Settle(99, "t", True)])
    second.close()


def _closes(conn: Connection) -> bool:
    deadline = time.monotonic() + 10
    while conn.is_open and time.monotonic() < deadline:
        time.sleep(0.002)
    return not conn.is_open


def test_a_client_that_could_not_connect_tries_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker is announced, and cannot be reached at that moment: what waits for it is served in the end."""
    calls = []

    def dial(*args: Any, **kwargs: Any) -> Connection:
        calls.append(1)
        if len(calls) < 3:
            raise PeerLost("not yet")
        return connect(*args, **kwargs)

    monkeypatch.setattr(broker_client, "connect", dial)
    client = BrokerClient(peer_id="host", token=TOKEN)
    done = threading.Event()
    client.ask(lambda n: push(n, "q", "hello"), lambda *_: done.set())
    with pytest.raises(PeerLost):
        client.open(door.listener.endpoint)
    assert done.wait(10)
    assert door.texts("q") == ["hello"]
    client.close()
