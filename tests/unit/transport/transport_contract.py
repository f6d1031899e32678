"""What every transport must do; run over each of them by test_transports.py and tests/actors/test_transport_ray.py.

The fixture `door` gives a ScriptedService that may live in another process: it is asked, never looked into.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from transport_peers import Client, Door, forward, wait_until

from pieray.errors import DeadlineExceeded, Denied, InvalidRequest, PeerLost
from pieray.messages import Event, Message, SendText
from pieray.transport import Connection, frames


class TransportContract:
    num_connects = 100  # of the leak test

    def test_connection_knows_its_peer(self, door: Door) -> None:
        conn = door.connect(Client())
        assert (conn.peer_id, conn.role, conn.incarnation, conn.is_open) == ("batcher-0", "inferlets", 7, True)
        conn.close()
        assert not conn.is_open

    def test_messages_arrive_in_order(self, door: Door) -> None:
        client = Client()
        conn = door.connect(client)
        answers: list[int] = []
        for n in range(1000):
            client.calls.submit(conn, forward, lambda value, error, n=n: answers.append(n))
        client.tell(conn, "nothing")
        assert answers == list(range(1000))
        client.tell(conn, "burst 1000")
        assert client.received == [Event("i", n, "text", "x") for n in range(1000)]

    def test_ten_thousand_messages_each_way(self, door: Door) -> None:
        client, answers = Client(), []
        conn = door.connect(client)
        for _ in range(100):
            for _ in range(100):
                client.calls.submit(conn, forward, lambda value, error: answers.append(value), post=True)
            conn.flush()
        client.tell(conn, "nothing")
        assert answers == [bytes(128)] * 10_000
        assert len(client.calls) == 0

    def test_posted_messages_of_many_threads_are_one_frame(self, door: Door) -> None:
        client = Client()
        conn = door.connect(client)
        before = client.tell(conn, "num_frames")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: conn.post([forward(1 << 40 | n)]), range(200)))
        conn.flush()
        assert client.tell(conn, "num_frames") == before + 2  # ours, and the one that asks

    def test_posted_goes_ahead_of_sent(self, door: Door) -> None:
        client, order = Client(), []
        conn = door.connect(client)
        client.calls.submit(conn, forward, lambda value, error: order.append("posted"), post=True)
        client.calls.submit(conn, forward, lambda value, error: order.append("sent"))
        client.tell(conn, "nothing")
        assert order == ["posted", "sent"]

    def test_sixty_four_callers_share_a_connection(self, door: Door) -> None:
        client = Client()
        conn = door.connect(client)
        pages = [bytes([n]) * 128 for n in range(64)]
        with ThreadPoolExecutor(64) as pool:
            assert list(pool.map(lambda page: client.echo(conn, page), pages)) == pages

    @pytest.mark.slow
    def test_twenty_megabytes_in_one_frame(self, door: Door) -> None:
        client, pages = Client(), os.urandom(1 << 20) * 20
        conn = door.connect(client)
        assert client.echo(conn, pages) == pages
        assert client.echo(conn) == bytes(128)

    def test_message_over_the_limit_fails_alone(self, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 1 << 16)
        client, answered = Client(), []
        conn = door.connect(client)
        client.calls.submit(conn, forward, lambda value, error: answered.append(value), post=True)
        with pytest.raises(InvalidRequest, match=r"Forward takes 65\d+ bytes; a frame holds at most 65536"):
            client.echo(conn, bytes(1 << 16))
        client.tell(conn, "nothing")
        assert answered == [bytes(128)]
        assert len(client.calls) == 0

    def test_message_that_cannot_be_encoded_fails_alone(self, door: Door) -> None:
        client = Client()
        conn = door.connect(client)
        with pytest.raises(InvalidRequest, match="SendText cannot be encoded"):
            conn.send([SendText(1, "i", object())])  # type: ignore[arg-type]
        assert client.echo(conn) == bytes(128)

    def test_wrong_token_is_denied(self, door: Door) -> None:
        with pytest.raises(Denied, match="token"):
            door.connect(Client(), token="guessed")
        client = Client()
        assert client.echo(door.connect(client)) == bytes(128)

    def test_earlier_incarnation_is_stale(self, door: Door) -> None:
        with pytest.raises(PeerLost, match=r"batcher-0 \(incarnation 6\) is stale"):
            door.connect(Client(), endpoint=replace(door.endpoint, incarnation=6))

    def test_raising_handler_closes_that_connection_only(self, door: Door) -> None:
        bad, good = Client(), Client()
        bad_conn, good_conn = door.connect(bad), door.connect(good)
        with pytest.raises(PeerLost):
            bad.tell(bad_conn, "raise")
        assert bad.is_closed.wait(3)
        assert good.echo(good_conn) == bytes(128)

    def test_pending_calls_fail_when_the_peer_hangs_up(self, door: Door) -> None:
        client, errors = Client(), []
        conn = door.connect(client)
        conn.send([SendText(0, "i", "sleep 0.2")])
        conn.send([SendText(0, "i", "hang_up")])
        for _ in range(10):
            client.calls.submit(conn, forward, lambda value, error: errors.append(error))
        assert client.is_closed.wait(5)
        assert [type(error) for error in errors] == [PeerLost] * 10
        assert len(client.calls) == 0
        with pytest.raises(PeerLost):
            conn.send([forward(1)])
        with pytest.raises(PeerLost):
            conn.post([forward(1)])

    def test_close_is_told_once_on_both_ends(self, door: Door) -> None:
        client, witness = Client(), Client()
        conn, witness_conn = door.connect(client, peer_id="short-lived"), door.connect(witness)
        client.echo(conn)
        for _ in range(3):
            conn.close("done here")
        assert client.is_closed.wait(3)
        assert wait_until(lambda: "short-lived" in witness.tell(witness_conn, "closed"))
        assert witness.tell(witness_conn, "closed").count("short-lived") == 1
        assert [error.message for error in client.closed] == ["connection with batcher-0 (inferlets): done here"]

    @pytest.mark.slow
    def test_bulk_in_lanes_waits_for_a_slow_reader(self, door: Door) -> None:
        client, text, errors = Client(), "x" * (12 << 20), []
        conn = door.connect(client)
        conn.send([SendText(0, "i", "sleep 0.7")])
        for _ in range(11):
            ticket = client.calls.expect(conn, lambda value, error: errors.append(error))
            conn.send([SendText(ticket, "i", text)], lane=ticket)
        assert wait_until(lambda: len(errors) == 11, 60)
        assert errors == [None] * 11
        assert conn.is_open
        assert wait_until(lambda: conn.num_waiting == 0)

    @pytest.mark.slow
    def test_slow_reader_is_cut_off_without_blocking_the_sender(self, door: Door, tmp_path: Path) -> None:
        client, chunk, held = Client(), bytes(12 << 20), tmp_path / "held"
        held.touch()
        conn = door.connect(client)
        conn.send([SendText(0, "i", f"hold {held}")])
        for _ in range(5):
            conn.send([forward(1, chunk)])
        with pytest.raises(PeerLost, match=r"reads too slowly: \d+ bytes wait, the limit is 67108864"):
            send_until_lost(conn, [forward(1, chunk)])
        held.unlink()
        assert client.is_closed.wait(8)

    def test_close_while_many_send(self, door: Door) -> None:
        client = Client()
        conn = door.connect(client)

        with ThreadPoolExecutor(4) as pool:
            senders = [pool.submit(send_until_lost, conn, [forward(1 << 40)]) for _ in range(4)]
            time.sleep(0.05)
            conn.close("enough")
            errors = [sender.exception(5) for sender in senders]
        assert [str(error) for error in errors] == ["connection with batcher-0 (inferlets): enough"] * 4
        assert client.is_closed.wait(5)
        assert len(client.closed) == 1

    def test_call_has_a_deadline_and_a_late_answer_is_ignored(self, door: Door) -> None:
        client = Client()
        conn = door.connect(client)
        with pytest.raises(DeadlineExceeded, match=r"batcher-0 did not answer within 0\.05 s"):
            client.tell(conn, "sleep 0.3", timeout_s=0.05)
        assert len(client.calls) == 0
        assert client.echo(conn) == bytes(128)

    @pytest.mark.slow
    def test_nothing_leaks_over_many_connects(self, door: Door) -> None:
        client = Client()
        client.echo(door.connect(client))
        threads, files = _num_threads(), _num_files()
        for _ in range(self.num_connects):
            other = Client()
            conn = door.connect(other)
            other.echo(conn)
            conn.close()
        assert wait_until(lambda: _num_threads() <= threads and _num_files() <= files)


def send_until_lost(conn: Connection, messages: list[Message]) -> None:
    while True:
        conn.send(messages)


def _num_threads() -> int:
    return sum(thread.name.startswith("pieray-") for thread in threading.enumerate())


def _num_files() -> int:
    return len(os.listdir("/proc/self/fd"))
