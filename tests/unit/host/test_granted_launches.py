"""A client launches straight at the actor: what a grant allows, and what the Controller alone may do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from fakes import PAGE_SIZE, VOCAB, byte_tokenizer
from groups import Group, until
from test_inferlet_host import COMPONENT, Client, end_of, launch

from pieray.concurrency.stalls import Stalls
from pieray.config import Config
from pieray.host.clients import ClientService
from pieray.host.core import InferletHost
from pieray.host.device.device import DeviceClient
from pieray.host.device.model_devices import ModelDevices
from pieray.host.inferlet import Inferlet
from pieray.host.models import ModelDirectory, ModelInfo, ServedModel
from pieray.messages import Completed, Failed, Launch, LaunchHere, encode

PLACES = 2


class Door(Client):
    """A client that has two places by the grant "g"."""

    def __init__(self, host: InferletHost) -> None:
        super().__init__()
        self.host = host
        self.service = ClientService(host)
        self.service.on_connect(self)  # type: ignore[arg-type]
        self.num_asked = 0

    def ask(
        self,
        message: Launch,
        grant: str = "g",
        sent_ago_s: float = 0.0,
        left_s: float = 60.0,
        instance_id: str = "",
        revision: int = 0,
    ) -> Completed | Failed:
        now = time.monotonic()
        self.num_asked += 1
        here = LaunchHere(
            self.num_asked,
            instance_id or message.instance_id,
            grant,
            now - sent_ago_s,
            now + left_s,
            encode([message]),
            revision,
        )
        self.service.on_messages(self, [here])  # type: ignore[arg-type]
        answer: Any = self.answers[-1]
        assert answer.ticket == self.num_asked
        return answer  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    group = Group(num_pages=20)
    yield group
    group.close()


@pytest.fixture
def stalls() -> Stalls:
    return Stalls(float("inf"))


@pytest.fixture
def host(group: Group, stalls: Stalls) -> Iterator[InferletHost]:
    info = ModelInfo("fake", "llama", VOCAB, 1024, PAGE_SIZE, 20, "float32", "cpu")
    models = ModelDirectory([ServedModel(info, byte_tokenizer())])
    sessions = group.sessions(f"granted-{len(group.clients)}")
    host = InferletHost(Config(inferlets_per_actor=8), ModelDevices(sessions), models, stalls=stalls)
    host._components.compile(COMPONENT, "misbehave", tenant="", owner="", wait_s=60.0).result()
    host.grants.open("g", PLACES, 60.0)
    yield host
    host.close()
    until(lambda: group.free() == 20)
    until(lambda: host.num_live == 0)
    host.grants.check()


@pytest.fixture
def door(host: InferletHost) -> Door:
    return Door(host)


def test_launch_attach_and_the_clock_in_one_message(door: Door, host: InferletHost) -> None:
    before = time.monotonic()
    answer = door.ask(launch("it", "echo 1"))
    assert isinstance(answer, Completed)
    assert before <= answer.value <= time.monotonic()
    end_of(host, "it")
    until(lambda: bool(door.events) and door.events[-1].kind == "result")
    assert [event.number for event in door.events] == list(range(len(door.events)))
    assert host.take_launched() == [("it", "raw")]
    assert host.take_launched() == []


def test_a_grant_holds_so_many_at_a_time_and_no_more(door: Door, host: InferletHost) -> None:
    for number in range(PLACES):
        assert isinstance(door.ask(launch(f"it-{number}", "spin")), Completed)
    full = door.ask(launch("one-more", "spin"))
    assert isinstance(full, Failed)
    assert (full.code, full.message) == ("engine", "all 2 places of the grant are taken: ask the Controller")
    host.kill("it-0", "enough")
    until(lambda: host.num_live == PLACES - 1)
    until(lambda: isinstance(door.ask(launch(f"again-{door.num_asked}", "spin")), Completed))
    assert host.num_returned == 0  # its places are the client's
    host.grants.recall()
    for row in host.status():
        host.kill(row["instance_id"], "enough")
    until(lambda: host.num_returned == PLACES)


def test_who_hears_of_an_end_has_its_place_though_the_device_has_not_let_go_of_it(
    door: Door, host: InferletHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Callable[[], None]] = []
    retire = DeviceClient.retire
    monkeypatch.setattr(
        DeviceClient, "retire", lambda self, number, done: held.append(partial(retire, self, number, done))
    )
    for number in range(8):  # inferlets_per_actor, at PLACES places
        assert isinstance(door.ask(launch(f"it-{number}", "echo 1")), Completed)
        until(lambda: bool(door.events) and door.events[-1].kind == "result")
        door.events.clear()
        until(lambda: len(held) == door.num_asked)
    assert host.num_live == 8
    refused = door.ask(launch("too-many", "echo 1"))
    assert isinstance(refused, Failed)
    assert refused.message == "8 inferlets that have ended still wait for the device to let go of them"
    monkeypatch.undo()
    for go_on in held:
        go_on()
    until(lambda: host.num_live == 0)
    assert isinstance(door.ask(launch("again", "echo 1")), Completed)
    until(lambda: host.num_live == 0)
    assert host.num_returned == 0


def test_what_a_quota_counts_is_for_the_controller_and_its_tallies_are_told(door: Door, host: InferletHost) -> None:
    assert host.take_tallies() == {}
    host._config = replace(host._config, tenants={"lab": {"inferlets": 5}, "slow": {"tokens_per_minute": 60}})
    for tenant in ("lab", "slow"):
        refused = door.ask(replace(launch("it", "spin"), tenant=tenant))
        assert isinstance(refused, Failed)
        assert refused.code == "engine"
        assert f"tenant '{tenant}' has a quota that the Controller keeps" in refused.message
    assert isinstance(door.ask(replace(launch("free", "spin"), tenant="free")), Completed)
    host.launch(replace(launch("counted", "spin"), tenant="lab"))
    host.launch(replace(launch("metered", "spin"), tenant="slow"))
    assert host.take_tallies() == {"live": ["counted"], "tokens": {}}
    metered = host.find("metered")
    assert isinstance(metered, Inferlet)
    for num_more in (7, 0, 3):
        metered._sides.first.outbox._work.num_settled += num_more
        assert host.take_tallies()["tokens"] == ({"slow": num_more} if num_more else {})
    metered._sides.first.outbox._work.num_settled += 5
    for name in ("free", "counted", "metered"):
        host.kill(name, "enough")
    until(lambda: host.num_live == 0)
    assert host.take_tallies() == {"live": [], "tokens": {"slow": 5}}  # of one that has ended, too
    assert host.take_tallies() == {"live": [], "tokens": {}}


def test_without_a_grant_or_when_it_has_ended_nothing_starts(door: Door, host: InferletHost) -> None:
    host.grants.open("short", 1, 0.05)
    time.sleep(0.06)
    for grant in ("", "forged", "short"):
        answer = door.ask(launch("it", "spin"), grant)
        assert isinstance(answer, Failed)
        assert answer.code == "engine"
        assert "the grant has ended" in answer.message
    assert host.status() == []
    assert host.num_returned == 1


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"component": b""}, "invalid", "is launched by name: ask the Controller"),
        ({"component": b"", "capabilities": {"http": ["*"]}}, "invalid", "is launched by name: ask the Controller"),
        ({"parent": "it-0"}, "invalid", "children are launched by the Controller"),
        ({"depth": 1}, "invalid", "children are launched by the Controller"),
        ({"limits": {"pages": 10**6}}, "config", "limits.pages: this engine allows at most"),
        ({"limits": []}, "invalid", "limits of a launch is dict"),
        ({"capabilities": {"root": True}}, "config", "root"),
        ({"source": "def main(): ..."}, "invalid", "takes no source"),
    ],
)
def test_what_the_controller_would_not_launch_is_refused_and_its_place_is_free(
    door: Door, host: InferletHost, change: dict[str, Any], code: str, text: str
) -> None:
    for _ in range(PLACES + 1):
        answer = door.ask(replace(launch("it", "return 1"), **change))
        assert isinstance(answer, Failed)
        assert answer.code == code, answer
        assert text in answer.message
        until(lambda: host.num_live == 0)
        until(lambda: all(g.num_used == 0 for g in host.grants._grants.values()))
    assert host.num_returned == 0
    answer = door.ask(launch("it", "echo 1"), instance_id="another")
    assert isinstance(answer, Failed)
    assert "the launch of 'another' is one of 'it'" in answer.message


def test_one_that_was_given_up_never_starts(door: Door, host: InferletHost, stalls: Stalls) -> None:
    late = door.ask(launch("late", "spin"), left_s=-0.1)
    assert isinstance(late, Failed)
    assert late.code == "deadline"
    stalls._ended_at = time.monotonic()  # it has just stood still
    stalled = door.ask(launch("stalled", "spin"), sent_ago_s=1.0)
    assert isinstance(stalled, Failed)
    assert stalled.code == "stalled"
    assert host.status() == []
    assert isinstance(door.ask(launch("fresh", "return 1")), Completed)


def test_an_attached_one_ends_with_the_connection_that_launched_it(door: Door, host: InferletHost) -> None:
    for name in ("attached", "other"):
        door.ask(replace(launch(name, "spin", wall_time_s=60.0), is_attached=name == "attached"))
    door.service.on_close(door, None)  # type: ignore[arg-type]
    assert end_of(host, "attached").payload == '{"code": "cancelled", "message": "its client is gone"}'
    assert {row["instance_id"]: row["state"] for row in host.status()} == {"attached": "killed", "other": "running"}
    host.kill("other", "the test is over")


def test_a_device_that_is_replaced_is_not_waited_for(door: Door, host: InferletHost) -> None:
    host._devices.first.close("a test")
    began = time.monotonic()
    answer = door.ask(launch("it", "echo 1"))
    assert isinstance(answer, Failed)
    assert answer.code in ("device-lost", "engine")
    assert time.monotonic() - began < 1.0


def test_an_installed_program_of_an_older_revision_is_refused(door: Door, host: InferletHost) -> None:
    host.registry_revision = 5
    assert isinstance(door.ask(launch("it-0", "echo 1"), revision=5), Completed)
    end_of(host, "it-0")
    assert isinstance(door.ask(launch("it-1", "echo 1"), revision=6), Completed)  # the Controller has yet to tell of it
    end_of(host, "it-1")
    old = door.ask(launch("it-2", "echo 1"), revision=4)
    assert isinstance(old, Failed)
    assert (old.code, old.message) == ("not-found", "raw may be another program by now: ask the Controller")
