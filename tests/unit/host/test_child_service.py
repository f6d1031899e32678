"""Launching children over a real connection: room is waited for, attachments end what nobody holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from groups import until

from pieray.client.process import Process
from pieray.concurrency.timers import Timers
from pieray.config import Limits
from pieray.errors import ChildCeiling, DeadlineExceeded, EngineError, NotFound, PeerLost, QuotaExceeded
from pieray.host.children.service import Attachments, ChildService
from pieray.messages import Attach, Bind, Completed, Event, Launch, Message
from pieray.transport import Connection, Endpoint, serve

TOKEN = "t" * 64
LAUNCH = Launch("c-1", "c", "c.py", "def main(): ...", b"", "{}", {}, parent="p", depth=1)


class Actor:
    """Hosts children that say one thing and end."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.closed = threading.Event()
        self.door = serve(self, peer_id="actor", incarnation=1, token=TOKEN)

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        for message in messages:
            self.heard.append(message)
            if isinstance(message, Attach):
                conn.send([Event(message.instance_id, 0, "result", "1"), Completed(message.ticket, False)])
            else:
                conn.send([Completed(message.ticket, None)])  # type: ignore[attr-defined]

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        self.closed.set()


class FakeLauncher:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.refusals: list[Exception] = []
        self.num_launches = 0
        self.killed: list[str] = []

    def launch(self, _message: Launch) -> Endpoint:
        self.num_launches += 1
        if self.refusals:
            raise self.refusals.pop(0)
        return self.endpoint

    def kill(self, instance_id: str, _reason: str) -> None:
        self.killed.append(instance_id)


class Child(Process):
    is_unwanted = False


class Scene:
    def __init__(self) -> None:
        self.actor = Actor()
        self.timers = Timers()
        self.launcher = FakeLauncher(self.actor.door.endpoint)
        self.service = ChildService(
            self.launcher, Limits(), peer_id="me", token=TOKEN, timers=self.timers, answer_s=0.5
        )

    def launch(self, child: Any | None = None) -> Any:
        """What the launch comes to."""
        found: list[Any] = []
        done = threading.Event()
        self.service.launch(LAUNCH, child or Child("c-1", "c", None), lambda f: (found.append(f), done.set()))  # type: ignore[arg-type]
        assert done.wait(10)
        return found[0]

    def close(self) -> None:
        self.service.close()
        self.actor.door.close()
        self.timers.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def test_a_child_is_bound_before_it_is_attached_and_connections_are_shared(scene: Scene) -> None:
    child = Child("c-1", "c", None)  # type: ignore[arg-type]
    link = scene.launch(child)
    assert [type(m) for m in scene.actor.heard] == [Bind, Attach]
    assert child.result(timeout=1) == 1
    assert scene.launch() is link


def test_room_is_waited_for(scene: Scene) -> None:
    scene.launcher.refusals = [ChildCeiling("full")] * 2
    assert not isinstance(scene.launch(), Exception)
    assert scene.launcher.num_launches == 3


def test_no_room_is_a_deadline_that_says_so(scene: Scene) -> None:
    scene.launcher.refusals = [ChildCeiling("12 run")] * 100
    found = scene.launch()
    assert isinstance(found, DeadlineExceeded)
    assert "no room for a child within 0.5 s; 12 run" in found.message


def test_another_quota_is_told_at_once_whatever_its_text_says(scene: Scene) -> None:
    scene.launcher.refusals = [QuotaExceeded("registry_bytes, not child_ceiling")] * 100
    assert isinstance(scene.launch(), QuotaExceeded)
    assert scene.launcher.num_launches == 1


def test_a_child_that_nobody_wants_any_more_does_not_wait_for_room(scene: Scene) -> None:
    scene.launcher.refusals = [ChildCeiling("12 run")] * 100
    child = Child("c-1", "c", None)  # type: ignore[arg-type]
    child.is_unwanted = True
    assert isinstance(scene.launch(child), DeadlineExceeded)
    assert scene.launcher.num_launches == 1


@pytest.mark.parametrize("error", [NotFound("no such program"), QuotaExceeded("source_bytes"), EngineError("gone")])
def test_other_refusals_are_final(scene: Scene, error: Exception) -> None:
    scene.launcher.refusals = [error]
    assert scene.launch() is error


def test_a_child_whose_actor_cannot_be_reached_is_killed_through_the_controller(scene: Scene) -> None:
    scene.actor.door.close()
    assert isinstance(scene.launch(), PeerLost)
    assert scene.launcher.killed == ["c-1"]


def test_a_fault_of_ours_and_a_closed_service_answer_too(scene: Scene) -> None:
    scene.launcher.refusals = [RuntimeError("a fault")]
    assert "a fault" in scene.launch().message
    scene.service.close()
    assert isinstance(scene.launch(), EngineError)


def test_closing_hangs_up(scene: Scene) -> None:
    scene.launch()
    scene.service.close()
    assert scene.actor.closed.wait(5)


def test_bonds_end_what_is_lost_and_what_nobody_binds() -> None:
    timers, killed = Timers(), []
    attachments = Attachments(timers, lambda i, reason: killed.append((i, reason)), wait_s=0.05)
    for name in ("bound", "released", "ended", "unbound", "ended-unbound"):
        attachments.expect(name)
    for name in ("bound", "released", "ended"):
        attachments.bind(1, name, is_bound=True)
    attachments.bind(1, "released", is_bound=False)
    attachments.ended("ended")
    attachments.ended("ended-unbound")
    until(lambda: len(killed) == 1)
    assert killed.pop() == ("unbound", "its parent did not attach to it within 0.05 s")
    attachments.lost(2)
    attachments.lost(1)
    attachments.lost(1)
    assert killed == [("bound", "the actor of its parent is gone")]
    timers.close()
