"""Children without processes: launching, talking, ending; tickets always end, limits hold, detached ones live on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from arrays import u32
from fakes import Bench

from pieray.client.process import Event
from pieray.config import Limits
from pieray.errors import (
    BadHandle,
    Cancelled,
    ConfigError,
    Denied,
    EngineError,
    InvalidRequest,
    NotFound,
    PeerLost,
    Pending,
    PierayError,
    QuotaExceeded,
    RemoteFailed,
    Unsupported,
)
from pieray.messages import Bind, Kill, Launch, Message, SendText
from pieray.programs.capabilities import Capabilities

SOURCE = "def main(): ..."


class FakeLink:
    """Records what is asked; answers when told to, or at once."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self.done: list[Callable[[Any, PierayError | None], None]] = []
        self.is_patient = False
        self.error: PierayError | None = None

    def ask(self, make: Callable[[int], Message], done: Callable[[Any, PierayError | None], None]) -> None:
        self.asked.append(make(1))
        if self.is_patient:
            self.done.append(done)
        else:
            done(None, self.error)


class FakeService:
    """Launches nothing; the test says how each launch goes."""

    def __init__(self) -> None:
        self.ceiling = Limits()
        self.launches: list[tuple[Launch, Any, Callable[[Any], None]]] = []

    def launch(self, message: Launch, child: Any, done: Callable[[Any], None]) -> None:
        self.launches.append((message, child, done))

    def close(self) -> None: ...


class Nursery:
    def __init__(self, limits: Limits | None = None, **capabilities: Any) -> None:
        self.bench = Bench(limits or Limits(), capabilities=Capabilities(**{"children": True, **capabilities}))
        self.service = FakeService()
        self.bench.services.children = self.service  # type: ignore[assignment]
        self.link = FakeLink()
        self.failures = self.bench.failures
        self.handlers = self.bench.handlers

    def change(self, **launch: Any) -> None:
        """As Bench.change, of what the parent was launched with."""
        self.bench.change(launch=launch)
        self.handlers = self.bench.handlers

    def launch(self, link: str = "none", runs: bool = True, program: str = "", **options: str) -> int:
        source = "" if program else SOURCE
        given, limits = options.get("input", "{}"), options.get("limits", "")
        handle = self.handlers.children.launch(program, source, given, limits, link)
        if runs:
            self.service.launches[-1][2](self.link)
        return handle

    def says(self, *events: tuple[str, str], at: int = -1) -> None:
        child = self.service.launches[at][1]
        start = child.num_events
        child.add([Event(kind, text, start + i) for i, (kind, text) in enumerate(events)])

    def fails(self, code: str, message: str, at: int = -1) -> None:
        self.says(("error", json.dumps({"code": code, "message": message})), at=at)

    def text(self, ticket: int) -> str:
        return self.handlers.tickets.take_text(ticket)

    def asked(self, kind: type) -> list[Any]:
        return [message for message in self.link.asked if isinstance(message, kind)]


@pytest.fixture
def nursery() -> Nursery:
    return Nursery()


def test_a_child_is_launched_in_its_parents_name_within_what_it_has() -> None:
    nursery = Nursery(Limits(pages=64, wall_time_s=100), store=True)
    nursery.change(user="u", tenant="t", depth=2)
    nursery.launch(program="text-completion@1.0.0", input='{"a": 1}', limits='{"tickets": 9}')
    (message, _, _) = nursery.service.launches[0]
    assert (message.name, message.source, message.input) == ("text-completion@1.0.0", "", '{"a": 1}')
    assert message.instance_id.startswith("text-completion-")
    assert (message.user, message.tenant, message.parent, message.depth) == ("u", "t", "it", 3)
    assert (message.capabilities["store"], message.capabilities["messaging"]) == (True, False)
    wall = message.limits.pop("wall_time_s")
    assert 90 < wall <= 100
    assert message.limits == {"pages": 64, "tickets": 9}


def test_texts_result_and_id_come_to_tickets_asked_before_and_after(nursery: Nursery) -> None:
    child = nursery.launch(runs=False)
    early = [
        nursery.handlers.children.id(child),
        nursery.handlers.children.wait(child),
        nursery.handlers.children.receive(child),
    ]
    with pytest.raises(Pending):
        nursery.text(early[0])
    nursery.service.launches[0][2](nursery.link)
    nursery.says(("text", "one"), ("log", "info: x"), ("text", "two"), ("result", '{"a": 1}'))
    instance_id = nursery.service.launches[0][0].instance_id
    assert [nursery.text(t) for t in early] == [instance_id, '{"a": 1}', "one"]
    assert nursery.text(nursery.handlers.children.receive(child)) == "two"
    with pytest.raises(Cancelled, match="has ended and sends no more"):
        nursery.text(nursery.handlers.children.receive(child))
    assert nursery.text(nursery.handlers.children.wait(child)) == '{"a": 1}'
    assert nursery.text(nursery.handlers.children.id(child)) == instance_id


def test_a_result_counts_by_its_bytes() -> None:
    nursery = Nursery(Limits(mailbox_bytes=40))
    first, second = nursery.launch(), nursery.launch()
    long, short = json.dumps("ä" * 15, ensure_ascii=False), json.dumps("ä" * 4, ensure_ascii=False)
    nursery.says(("result", long), at=0)
    nursery.says(("result", short), at=1)
    assert nursery.text(nursery.handlers.children.wait(first)) == long
    with pytest.raises(QuotaExceeded, match="the limit is 40, 8 are left; the result of child .* has 10"):
        nursery.text(nursery.handlers.children.wait(second))


def test_a_child_that_ends_before_its_launch_is_answered_has_a_result_and_an_id(nursery: Nursery) -> None:
    child = nursery.launch(runs=False)
    sent, asked = nursery.handlers.children.send(child, "x"), nursery.handlers.children.id(child)
    nursery.says(("result", "1"))
    assert nursery.text(nursery.handlers.children.wait(child)) == "1"
    nursery.link.error = Cancelled("the inferlet has ended")
    nursery.service.launches[0][2](nursery.link)
    assert nursery.text(asked)
    with pytest.raises(Cancelled):
        nursery.handlers.tickets.take_none(sent)


def test_messages_wait_for_the_launch_and_arrive_in_order(nursery: Nursery) -> None:
    child = nursery.launch(runs=False)
    tickets = [nursery.handlers.children.send(child, text) for text in "abc"]
    assert nursery.link.asked == []
    nursery.service.launches[0][2](nursery.link)
    tickets.append(nursery.handlers.children.send(child, "d"))
    assert [m.text for m in nursery.asked(SendText)] == ["a", "b", "c", "d"]
    for ticket in tickets:
        nursery.handlers.tickets.take_none(ticket)


@pytest.mark.parametrize(
    ("found", "error", "text"),
    [
        (NotFound("no program 'x'"), NotFound, "no program 'x'"),
        (EngineError("the Controller is gone"), PeerLost, "Controller"),
        (ConfigError("limits.pages"), InvalidRequest, "limits.pages"),
        (PeerLost("gone"), PeerLost, "gone"),
    ],
)
def test_a_child_that_cannot_be_launched_answers_everything_with_why(
    nursery: Nursery, found: PierayError, error: type[PierayError], text: str
) -> None:
    child, handlers = nursery.launch(runs=False), nursery.handlers
    early = [handlers.children.wait(child), handlers.children.id(child)]
    sent, killed = handlers.children.send(child, "x"), handlers.children.cancel(child, "")
    nursery.service.launches[0][2](found)
    late = [handlers.children.wait(child), handlers.children.id(child), handlers.children.detach(child)]
    for ticket in early + late:
        with pytest.raises(error, match=text):
            nursery.text(ticket)
    for ticket in (sent, killed):
        with pytest.raises(error):
            handlers.tickets.take_none(ticket)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("guest-failed", RemoteFailed),
        ("guest-trapped", RemoteFailed),
        ("quota", QuotaExceeded),
        ("cancelled", Cancelled),
    ],
)
def test_a_childs_error_is_its_parents_to_see(nursery: Nursery, code: str, error: type[PierayError]) -> None:
    child = nursery.launch()
    waiting, receiving = nursery.handlers.children.wait(child), nursery.handlers.children.receive(child)
    nursery.fails(code, "ValueError: no luck")
    with pytest.raises(error, match="ValueError: no luck"):
        nursery.text(waiting)
    with pytest.raises(Cancelled):
        nursery.text(receiving)
    assert nursery.failures == []


def test_a_linked_childs_failure_is_its_parents(nursery: Nursery) -> None:
    nursery.launch(link="linked")
    nursery.says(("result", "1"))
    nursery.launch(link="linked")
    nursery.fails("guest-failed", "ValueError: no luck")
    (failure,) = nursery.failures
    assert isinstance(failure, RemoteFailed)
    assert "ValueError: no luck" in failure.message


def test_ending_a_linked_child_oneself_is_no_failure(nursery: Nursery) -> None:
    for end in (
        lambda c: nursery.handlers.children.cancel(c, "enough"),
        nursery.handlers.children.close,
        nursery.handlers.children.detach,
    ):
        end(nursery.launch(link="linked"))
        nursery.fails("cancelled", "enough")
    assert nursery.failures == []


def test_a_lost_actor_answers_all(nursery: Nursery) -> None:
    child = nursery.launch(link="linked")
    waiting, receiving = nursery.handlers.children.wait(child), nursery.handlers.children.receive(child)
    nursery.service.launches[0][1].lose(PeerLost("the actor is gone"))
    with pytest.raises(PeerLost, match="gone"):
        nursery.text(waiting)
    with pytest.raises(Cancelled):
        nursery.text(receiving)
    assert [type(f) for f in nursery.failures] == [PeerLost]


def test_the_parents_end_is_its_childrens_but_not_of_detached_or_closed_ones(nursery: Nursery) -> None:
    nursery.launch()
    detached = nursery.handlers.children.detach(nursery.launch())
    late = nursery.launch(runs=False)
    assert nursery.text(detached) == nursery.asked(Bind)[0].instance_id
    ids = [launch.instance_id for launch, _, _ in nursery.service.launches]
    nursery.bench.parts.close()
    assert [(m.instance_id, m.reason) for m in nursery.asked(Kill)] == [(ids[0], "its parent has ended")]
    nursery.service.launches[2][2](nursery.link)  # one that only now has been launched
    assert [m.instance_id for m in nursery.asked(Kill)] == [ids[0], ids[2]]
    assert late


def test_a_closed_child_ends_and_its_handle_is_gone(nursery: Nursery) -> None:
    child = nursery.launch()
    nursery.handlers.children.close(child)
    assert len(nursery.asked(Kill)) == 1
    for call in (nursery.handlers.children.close, nursery.handlers.children.wait, nursery.handlers.children.id):
        with pytest.raises(BadHandle):
            call(child)
    ended = nursery.launch()
    nursery.says(("result", "1"))
    nursery.handlers.children.close(ended)
    assert len(nursery.asked(Kill)) == 1


def test_a_cancelled_receive_leaves_its_text_to_the_next(nursery: Nursery) -> None:
    child = nursery.launch()
    first, second = nursery.handlers.children.receive(child), nursery.handlers.children.receive(child)
    nursery.handlers.tickets.cancel(u32(first))
    nursery.says(("text", "hello"))
    assert nursery.text(second) == "hello"


def test_an_actor_that_does_not_answer_is_a_deadline(nursery: Nursery) -> None:
    child = nursery.launch()
    nursery.handlers.children._family._ask_s = 0.01  # type: ignore[union-attr]
    nursery.link.is_patient = True
    ticket = nursery.handlers.children.send(child, "x")
    deadline = time.monotonic() + 5
    while not nursery.handlers.tickets.ready(u32(ticket)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with pytest.raises(PierayError, match="did not answer within"):
        nursery.handlers.tickets.take_none(ticket)
    nursery.link.done[0](None, None)  # too late: nothing happens


def test_children_and_generations_are_limited() -> None:
    nursery = Nursery(Limits(children=2, child_depth=1))
    nursery.launch()
    nursery.launch()
    with pytest.raises(QuotaExceeded, match="children: the limit is 2 at one time"):
        nursery.launch()
    nursery.says(("result", "1"), at=0)
    detached = nursery.launch()
    nursery.handlers.children.detach(detached)
    with pytest.raises(QuotaExceeded, match="children"):  # a detached one still counts
        nursery.launch()
    nursery.change(depth=1)
    with pytest.raises(QuotaExceeded, match="child_depth: the limit is 1 generations; this would be number 2"):
        nursery.launch()


def test_what_a_parent_does_not_read_ends_the_child_that_said_it() -> None:
    nursery = Nursery(Limits(mailbox_bytes=1000))
    child = nursery.launch()
    nursery.says(("text", "x" * 400), ("text", "y" * 400))
    receiving = nursery.handlers.children.receive(child)
    nursery.says(("text", "z" * 400))  # the first is given, but not taken: it counts
    assert len(nursery.asked(Kill)) == 1
    with pytest.raises(QuotaExceeded, match="mailbox_bytes: the limit is 1000"):
        nursery.text(nursery.handlers.children.wait(child))
    assert nursery.text(receiving) == "x" * 400
    other = nursery.launch()
    nursery.says(("text", "w" * 400))  # taken and closed texts make room
    assert nursery.text(nursery.handlers.children.receive(other)) == "w" * 400


def test_what_is_on_its_way_to_children_is_limited() -> None:
    nursery = Nursery(Limits(mailbox_bytes=1000))
    child = nursery.launch()
    nursery.link.is_patient = True
    nursery.handlers.children.send(child, "x" * 600)
    with pytest.raises(QuotaExceeded, match="mailbox_bytes: the limit is 1000; 664 are on their way"):
        nursery.handlers.children.send(child, "x" * 600)
    with pytest.raises(QuotaExceeded, match="mailbox_bytes"):
        nursery.launch(input='"' + "x" * 600 + '"')
    nursery.link.done.pop()(None, None)
    nursery.handlers.children.send(child, "x" * 600)


@pytest.mark.parametrize(
    ("program", "source", "limits", "error", "text"),
    [
        ("", "", "", InvalidRequest, "given neither"),
        ("a", SOURCE, "", InvalidRequest, "given both"),
        ("../../etc/passwd", "", "", InvalidRequest, "a program's name"),
        ("main.py", "", "", InvalidRequest, "a program's name"),
        ("/tmp", "", "", InvalidRequest, "a program's name"),
        ("a" * 100, "", "", InvalidRequest, "a program's name"),
        ("a@one", "", "", InvalidRequest, "a program's name"),
        ("", SOURCE, "[1]", InvalidRequest, "limits are a JSON object; given list"),
        ("", SOURCE, "{", InvalidRequest, "limits are JSON"),
        ("", SOURCE, '{"page": 1}', InvalidRequest, "did you mean limits.pages"),
        ("", SOURCE, '{"pages": 65}', InvalidRequest, "its parent has at most 64; given 65"),
        ("", SOURCE, '{"pages": -1}', InvalidRequest, "at least 0"),
        ("", SOURCE, '{"pages": NaN}', InvalidRequest, "pages"),
        ("", SOURCE, " " * 5000, InvalidRequest, "at most 4096"),
        ("", SOURCE + "#" * 100, "", QuotaExceeded, "source_bytes: the limit is 100"),
    ],
)
def test_bad_launches_are_refused_at_once(
    program: str, source: str, limits: str, error: type[PierayError], text: str
) -> None:
    nursery = Nursery(Limits(pages=64, source_bytes=100))
    with pytest.raises(error, match=text):
        nursery.handlers.children.launch(program, source, "{}", limits, "none")
    assert nursery.service.launches == []


def test_a_child_is_as_urgent_as_its_parent() -> None:
    nursery = Nursery()
    nursery.change(priority=7, deadline=90.0, born=30.0)
    nursery.launch()
    message, *_ = nursery.service.launches[0]
    assert (message.priority, message.deadline, message.born) == (7, 90.0, 30.0)


def test_without_the_capability_nothing_is_launched() -> None:
    with pytest.raises(Denied, match="children"):
        Nursery(children=False).launch()
    nursery = Nursery()
    nursery.bench.services.children = None
    with pytest.raises(Unsupported):
        nursery.launch()
