"""A client's link over a real connection: several handles of one inferlet, long stories, failed attaches."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pieray.client.link import ActorLink, ActorLinks
from pieray.client.process import Process
from pieray.errors import DeadlineExceeded, EngineError, NotFound, PeerLost
from pieray.messages import Attach, Completed, Event, Failed, Message, ServeTools
from pieray.transport import Connection, Endpoint, serve

TOKEN = "t" * 64


class Actor:
    """Tells the story of the one inferlet "it", at most two events at a time."""

    def __init__(self) -> None:
        self.story = [Event("it", i, "text", str(i)) for i in range(5)]
        self.conns: list[Connection] = []

    def on_connect(self, conn: Connection) -> None:
        self.conns.append(conn)

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, ServeTools):
                conn.send([Completed(message.ticket, None)])
                continue
            assert isinstance(message, Attach)
            if message.instance_id != "it":
                conn.send([Failed(message.ticket, "not-found", "who?")])
                continue
            end = message.cursor + 2
            conn.send([*self.story[message.cursor : end], Completed(message.ticket, end < len(self.story))])

    def on_close(self, conn: Connection, error: PeerLost) -> None: ...


@pytest.fixture
def actor() -> Actor:
    return Actor()


@pytest.fixture
def link(actor: Actor) -> Iterator[ActorLink]:
    door = serve(actor, peer_id="host", incarnation=1, token=TOKEN, kind="inproc")
    link = ActorLink(door.endpoint, peer_id="me", token=TOKEN, timeout_s=5, on_lost=lambda _: None)
    yield link
    link.close()
    door.close()


def test_a_second_handle_does_not_silence_the_first(actor: Actor, link: ActorLink) -> None:
    first, second = Process("it", "demo", link), Process("it", "demo", link)
    link.attach(first)
    link.attach(second)
    assert first.num_events == second.num_events == 5  # all that there was, and each once
    actor.conns[0].send([Event("it", 5, "result", "7")])
    assert first.result(timeout=5) == second.result(timeout=5) == 7
    assert [e.text for e in first] == [e.text for e in second] == ["0", "1", "2", "3", "4"]
    assert link._processes == {}


def test_a_handle_that_could_not_attach_is_forgotten(link: ActorLink) -> None:
    with pytest.raises(NotFound, match="who"):
        link.attach(Process("nobody", "demo", link))
    assert link._processes == {}


def test_a_lost_actor_is_told_to_every_handle(actor: Actor, link: ActorLink) -> None:
    processes = [Process("it", "demo", link) for _ in range(2)]
    for process in processes:
        link.attach(process)
    actor.conns[0].close()
    for process in processes:
        with pytest.raises(PeerLost, match="gone"):
            process.result(timeout=5)


class SlowTools:
    """A server that takes a while to end."""

    def __init__(self) -> None:
        self.has_ended = False

    def close_soon(self) -> threading.Thread:
        thread = threading.Thread(target=self._end)
        thread.start()
        return thread

    def _end(self) -> None:
        time.sleep(0.2)
        self.has_ended = True


def test_closing_a_link_waits_until_the_tools_have_ended(actor: Actor, link: ActorLink) -> None:
    running: Any
    ended, running = SlowTools(), SlowTools()
    process = Process("it", "demo", link)
    link.attach(process)
    link.serve_tools(process, ended)  # type: ignore[arg-type]
    actor.conns[0].send([Event("it", 5, "result", "7")])
    assert process.result(timeout=5) == 7
    link.serve_tools(Process("other", "demo", link), running)
    link.close()
    assert ended.has_ended
    assert running.has_ended


@pytest.mark.slow
def test_an_actor_that_does_not_answer_keeps_nobody_from_the_others() -> None:
    actor, frozen = Actor(), socket.create_server(("127.0.0.1", 0))  # the kernel accepts, nobody greets
    door = serve(actor, peer_id="host", incarnation=1, token=TOKEN)
    silent = Endpoint("socket", "frozen", 1, host="127.0.0.1", port=frozen.getsockname()[1])
    links = ActorLinks(peer_id="client", token=TOKEN, timeout_s=4.0)
    errors: list[Exception] = []

    def dial() -> None:
        with pytest.raises(DeadlineExceeded) as found:
            links.get(silent)
        errors.append(found.value)

    dialing = [threading.Thread(target=dial) for _ in range(2)]
    for thread in dialing:
        thread.start()
    first = links.get(door.endpoint)
    assert links.get(door.endpoint) is first
    until = time.monotonic() + 3
    while not actor.conns and time.monotonic() < until:  # the actor's side hears of it a moment later
        time.sleep(0.01)
    actor.conns[-1].close("a test breaks this link")
    while first.is_open and time.monotonic() < until:
        time.sleep(0.01)
    second = links.get(door.endpoint)
    assert second is not first
    assert links.open_links() == [second]
    assert not errors  # all of it while the other one was dialled
    for thread in dialing:
        thread.join(20)
    assert len(errors) == 2
    links.close()
    with pytest.raises(EngineError, match="closed"):
        links.get(door.endpoint)
    door.close()
    frozen.close()


def test_a_closed_handle_says_so_to_who_holds_a_process(actor: Actor, link: ActorLink) -> None:
    process = Process("it", "demo", link)
    link.attach(process)
    link.close()
    deadline = time.monotonic() + 30
    while not process.is_done:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with pytest.raises(PeerLost, match="the engine handle of demo it is closed; it may run on"):
        process.result()
    for call in (process.kill, lambda: process.send("a"), lambda: process.send_file("a", b"")):
        with pytest.raises(PeerLost, match="closed its engine handle"):
            call()
