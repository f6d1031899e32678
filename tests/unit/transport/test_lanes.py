"""Bulk in lanes: it arrives whole however slowly the peer reads, and holds up nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from transport_peers import TOKEN, Client, Door, wait_until

from pieray.errors import PeerLost, PierayError
from pieray.messages import Completed, Message
from pieray.transport import Connection, frames, lanes, serve
from pieray.transport.base import MAX_QUEUED_BYTES

CHUNK = bytes(600_000)  # the logits of a row over a vocabulary of 150,000


class Reader(Client):
    """Notes what comes, in order, and takes `pause_s` for each message; `may_read` stops it."""

    def __init__(self, pause_s: float = 0.0) -> None:
        super().__init__()
        self.pause_s = pause_s
        self.may_read = threading.Event()
        self.may_read.set()
        self.tickets: list[int] = []

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        for message in messages:
            assert isinstance(message, Completed)
            self.may_read.wait(30)
            time.sleep(self.pause_s)
            self.tickets.append(message.ticket)


class Sender:
    """The listening end."""

    def __init__(self) -> None:
        self.conn: Connection | None = None
        self.errors: list[PeerLost] = []

    def on_connect(self, conn: Connection) -> None:
        self.conn = conn

    def on_messages(self, conn: Connection, messages: list[Message]) -> None: ...

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        self.errors.append(error)


Connect = Callable[[Reader], tuple[Connection, Sender]]


@pytest.fixture(params=["unix", "tcp", "inproc"])
def linked(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    sender = Sender()
    kind = "inproc" if request.param == "inproc" else "socket"
    listener = serve(sender, peer_id="batcher-0", incarnation=7, token=TOKEN, kind=kind, runtime_dir=str(tmp_path))
    endpoint = replace(listener.endpoint, unix_path="") if request.param == "tcp" else listener.endpoint

    def connect(reader: Reader) -> tuple[Connection, Sender]:
        Door(endpoint).connect(reader)
        assert wait_until(lambda: sender.conn is not None)
        assert sender.conn is not None
        return sender.conn, sender

    yield connect
    listener.close()


def bulk(first: int, count: int) -> list[Message]:
    return [Completed(ticket, CHUNK) for ticket in range(first, first + count)]


def test_twice_the_queues_limit_arrives_whole_at_a_peer_that_reads_slowly(linked: Connect) -> None:
    reader, count = Reader(pause_s=0.001), 2 * MAX_QUEUED_BYTES // len(CHUNK)
    conn, sender = linked(reader)
    conn.send(bulk(0, count), lane=1)
    conn.send([Completed(count, b"behind")], lane=1)
    assert len(reader.tickets) < count  # who sends has not waited
    assert wait_until(lambda: len(reader.tickets) == count + 1, 60)
    assert reader.tickets == list(range(count + 1))
    assert sender.errors == []
    assert wait_until(lambda: conn.num_waiting == 0)


@pytest.mark.slow
def test_a_neighbours_answer_passes_a_hundred_megabytes(linked: Connect) -> None:
    reader, count = Reader(pause_s=0.002), 200
    conn, _ = linked(reader)
    conn.send(bulk(0, count), lane=1)
    for neighbour in range(1000, 1003):
        conn.send([Completed(neighbour, b"token")], lane=neighbour)
        assert wait_until(lambda neighbour=neighbour: neighbour in reader.tickets, 20)
    assert len(reader.tickets) < count / 2
    assert wait_until(lambda: len(reader.tickets) == count + 3, 60)
    assert [t for t in reader.tickets if t < 1000] == list(range(count))


def test_two_lanes_of_bulk_take_turns(linked: Connect) -> None:
    reader = Reader(pause_s=0.001)
    conn, _ = linked(reader)
    conn.send(bulk(0, 100), lane="a")
    conn.send(bulk(1000, 10), lane="b")
    assert wait_until(lambda: 1009 in reader.tickets, 30)
    assert reader.tickets.index(1009) < 60
    assert wait_until(lambda: len(reader.tickets) == 110, 30)


def test_what_is_dropped_is_not_sent_and_what_comes_next_is(linked: Connect) -> None:
    reader = Reader()
    conn, _ = linked(reader)
    reader.may_read.clear()
    conn.send(bulk(0, 150), lane=1)
    conn.drop_lane(1)
    conn.drop_lane("nobody's")
    conn.send([Completed(999, b"")], lane=1)
    reader.may_read.set()
    assert wait_until(lambda: 999 in reader.tickets, 20)
    assert len(reader.tickets) < 100
    assert reader.tickets[-1] == 999
    assert wait_until(lambda: conn.num_waiting == 0)


@pytest.mark.slow
def test_a_peer_that_does_not_read_is_hung_up_on_once_much_waits(
    linked: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "STALLED_S", 0.1)
    reader = Reader()
    conn, sender = linked(reader)
    reader.may_read.clear()
    conn.send(bulk(0, 20), lane=1)
    time.sleep(0.5)
    assert conn.is_open  # twelve megabytes may wait for as long as it takes
    conn.send(bulk(20, MAX_QUEUED_BYTES // len(CHUNK)), lane=2)
    assert wait_until(lambda: not conn.is_open, 20)
    with pytest.raises(PeerLost, match=r"the peer does not read: \d+ bytes wait for it"):
        conn.send([Completed(1, b"")], lane=3)
    reader.may_read.set()
    assert wait_until(lambda: len(sender.errors) == 1)
    assert conn.num_waiting == 0


def test_a_message_over_the_frames_limit_is_refused_alone(linked: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 700_000)
    reader = Reader()
    conn, _ = linked(reader)
    refused: list[tuple[int, PierayError]] = []
    conn.on_refused = lambda message, error: refused.append((message.ticket, error))  # type: ignore[attr-defined]
    conn.send([*bulk(0, 2), Completed(2, bytes(800_000)), *bulk(3, 2)], lane=1)
    assert wait_until(lambda: len(reader.tickets) == 4, 20)
    assert reader.tickets == [0, 1, 3, 4]
    ((ticket, error),) = refused
    assert (ticket, error.code) == (2, "invalid")
    assert "a frame holds at most 700000" in error.message


def test_a_call_whose_message_cannot_travel_ends_with_that_error(
    linked: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 700_000)
    conn, _ = linked(Reader())
    client, errors = Client(), []
    conn.on_refused = client.calls.refuse
    ticket = client.calls.expect(conn, lambda _value, error: errors.append(error))
    conn.send([Completed(ticket, bytes(800_000))], lane=1)
    assert wait_until(lambda: len(errors) == 1)
    assert errors[0].code == "invalid"
    assert len(client.calls) == 0
