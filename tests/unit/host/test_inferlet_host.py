"""InferletHost with real guests (compiled ones: they need no Python runtime) over a scripted device group."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import PAGE_SIZE, VOCAB, byte_tokenizer
from groups import Group, until

from pieray.config import Config
from pieray.errors import Cancelled, ConfigError, EngineError, InvalidRequest, NotFound, PierayError, QuotaExceeded
from pieray.host import core
from pieray.host.clients import ClientService
from pieray.host.core import InferletHost
from pieray.host.device.device import DeviceClient
from pieray.host.device.model_devices import ModelDevices
from pieray.host.inferlet import Inferlet
from pieray.host.models import ModelDirectory, ModelInfo, ServedModel
from pieray.messages import Attach, Completed, Event, Failed, Kill, Launch, Message, SendText

COMPONENT = (Path(__file__).resolve().parents[2] / "inferlets" / "guests_c" / "misbehave.wasm").read_bytes()


def launch(instance_id: str, text: str, source: str = "", **limits: float) -> Launch:
    return Launch(instance_id, "raw", "misbehave.wasm", source, COMPONENT, text, limits)


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    group = Group(num_pages=20)
    yield group
    group.close()


@pytest.fixture
def host(group: Group) -> Iterator[InferletHost]:
    info = ModelInfo("fake", "llama", VOCAB, 1024, PAGE_SIZE, 20, "float32", "cpu")
    models = ModelDirectory([ServedModel(info, byte_tokenizer())])
    host = InferletHost(
        Config(inferlets_per_actor=4), ModelDevices(group.sessions(f"host-{len(group.clients)}")), models
    )
    host._components.compile(COMPONENT, "misbehave", tenant="", owner="", wait_s=60.0).result()
    yield host
    host.close()
    until(lambda: group.free() == 20)


class Client:
    """A connection's other end, without one."""

    peer_id = "client"

    def __init__(self) -> None:
        self.answers: list[Message] = []
        self.events: list[Event] = []
        self.closed: list[str] = []
        self.error: PierayError | None = None

    def send(self, messages: list[Message], *, lane: object = None) -> None:
        if self.error is not None:
            raise self.error
        self.events += [m for m in messages if isinstance(m, Event)]
        self.answers += [m for m in messages if not isinstance(m, Event)]

    post = send

    def flush(self) -> None: ...

    def close(self, reason: str) -> None:
        self.closed.append(reason)


def end_of(host: InferletHost, instance_id: str) -> Event:
    until(lambda: host.find(instance_id).log.is_ended)
    return host.find(instance_id).log._events[-1]


def test_a_launch_that_fails_half_way_gives_its_place_and_pages_back(host: InferletHost, group: Group) -> None:
    for i in range(6):
        until(lambda: host.num_live < 4)  # of those that the device has not let go of
        with pytest.raises(InvalidRequest, match="takes no source"):
            host.launch(launch(f"both-{i}", "echo 1", source="def main(): ..."))
    until(lambda: host.num_live == 0)
    until(lambda: group.free() == 20)
    assert host._devices.first.current()._tenants == {}
    with pytest.raises(NotFound):
        host.find("both-0")


def test_launches_over_a_limit_are_refused_before_anything_is_done(host: InferletHost) -> None:
    with pytest.raises(ConfigError, match=r"limits.pages: this engine allows at most 4096; given 5000"):
        host.launch(launch("a", "echo 1", pages=5000))
    with pytest.raises(QuotaExceeded, match="source_bytes: the limit is 9; given 10"):
        host.launch(Launch("a", "a", "a.py", "é" * 5, b"", "{}", {"source_bytes": 9}))
    with pytest.raises(InvalidRequest, match="neither"):
        host.launch(Launch("a", "a", "a.py", "", b"", "{}", {}))
    assert host.num_live == 0


def test_a_launch_is_dated_and_its_priority_is_checked(host: InferletHost) -> None:
    before = time.time()
    host.launch(replace(launch("dated", "echo 1"), priority=4, deadline=before + 9))
    inferlet = host.find("dated")
    assert isinstance(inferlet, Inferlet)
    assert before <= inferlet.launch.born <= time.time()
    assert (inferlet.launch.priority, inferlet.launch.deadline) == (4, before + 9)
    end_of(host, "dated")
    with pytest.raises(InvalidRequest, match="priority is a whole number from -100 to 100; given 101"):
        host.launch(replace(launch("urgent", "echo 1"), priority=101))
    assert {row["instance_id"]: row["priority"] for row in host.status()} == {"dated": 4}
    until(lambda: host.num_live == 0)


def test_who_has_told_its_end_counts_no_more_though_its_pages_are_still_to_come_back(
    host: InferletHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host._config = replace(host._config, tenants={"lab": {"inferlets": 2}})
    held: list[Callable[[], None]] = []
    retire = DeviceClient.retire
    monkeypatch.setattr(
        DeviceClient, "retire", lambda self, number, done: held.append(partial(retire, self, number, done))
    )
    host.launch(replace(launch("spins", "spin"), tenant="lab"))
    assert host.counted() == ["spins"]
    host.launch(replace(launch("ends", "echo 1"), tenant="lab"))
    end_of(host, "ends")
    assert host.counted() == ["spins"]
    assert host.num_live == 2
    host.kill("spins", "enough")
    until(lambda: len(held) == 2)
    monkeypatch.undo()
    for go_on in held:
        go_on()
    until(lambda: host.num_live == 0)


def test_ps_tells_how_each_ended_and_whose_it_is(host: InferletHost) -> None:
    launched = launch("fine", "echo 1")
    host.launch(replace(launched, user="ada", tenant="lab", parent="it-0"))
    host.launch(launch("fails", "return 100"))
    host.launch(replace(launch("killed", "spin", wall_time_s=60.0), is_attached=True))
    end_of(host, "fine"), end_of(host, "fails")
    facts = {row["instance_id"]: row for row in host.status()}
    assert [facts["fine"][key] for key in ("state", "error", "tenant", "user", "parent")] == [
        "done",
        "",
        "lab",
        "ada",
        "it-0",
    ]
    assert facts["fails"]["state"] == "failed"
    assert facts["fails"]["error"].startswith("guest-failed: the result is not JSON")
    assert (facts["killed"]["state"], facts["killed"]["ended_at"]) == ("running", None)
    host.kill("killed", "enough")
    end_of(host, "killed")
    facts = {row["instance_id"]: row for row in host.status()}
    assert (facts["killed"]["state"], facts["killed"]["error"]) == ("killed", "cancelled: enough")
    assert all(row["started_at"] <= row["ended_at"] for row in facts.values())


def test_an_attached_inferlet_ends_with_the_connection_of_its_client_and_others_do_not(host: InferletHost) -> None:
    for name in ("attached", "other"):
        host.launch(replace(launch(name, "spin", wall_time_s=60.0), is_attached=name == "attached"))
        host.attachments.bind(1, "attached", is_bound=True)
    host.attachments.lost(2)
    host.attachments.lost(1)
    assert end_of(host, "attached").payload == '{"code": "cancelled", "message": "its client is gone"}'
    assert {row["instance_id"]: row["state"] for row in host.status()} == {"attached": "killed", "other": "running"}
    host.kill("other", "the test is over")


@pytest.mark.parametrize(
    ("text", "limits", "wanted"),
    [
        ("return 100", {}, "not JSON"),
        ("return 100", {"message_bytes": 99}, "message_bytes: the limit is 99; the result has 100"),
        ("return 100", {"message_bytes": 4096, "output_bytes": 99}, "output_bytes"),
    ],
)
def test_a_result_is_json_within_its_limits(
    host: InferletHost, text: str, limits: dict[str, float], wanted: str
) -> None:
    host.launch(launch("it", text, **limits))
    event = end_of(host, "it")
    assert event.kind == "error"
    assert wanted in event.payload


def test_of_ended_inferlets_the_events_are_kept_and_not_too_many(
    host: InferletHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "KEEP_ENDED", 3)
    for i in range(6):
        host.launch(launch(f"it-{i}", "return 1"))
        until(lambda: host.num_live == 0)
    assert [row["instance_id"] for row in host.status()] == ["it-3", "it-4", "it-5"]
    last = host.find("it-5")
    assert type(last).__name__ == "EndedInferlet"
    last.kill(Cancelled("too late"))
    with pytest.raises(Cancelled, match="has ended"):
        last.deliver("x")
    monkeypatch.setattr(core, "KEEP_ENDED_BYTES", -1)
    host.launch(launch("it-6", "return 1"))
    until(lambda: host.num_live == 0)
    assert [row["instance_id"] for row in host.status()] == ["it-6"]


def test_a_full_actor_says_so(host: InferletHost) -> None:
    for i in range(4):
        host.launch(launch(f"it-{i}", "spin"))
    with pytest.raises(EngineError, match="inferlets_per_actor: the limit is 4"):
        host.launch(launch("it-4", "spin"))
    with pytest.raises(NotFound):
        host.kill("it-4", "x")
    for i in range(4):
        host.kill(f"it-{i}", "enough")
    assert "enough" in end_of(host, "it-0").payload
    until(lambda: host.num_live == 0)


def test_clients_attach_late_and_again_and_wrongly(host: InferletHost) -> None:
    service, client = ClientService(host), Client()
    conn: Any = client
    service.on_connect(conn)
    host.launch(launch("it", "spin"))
    service.on_messages(conn, [Attach(1, "it", 0), Attach(2, "it", 0), Attach(3, "it", 9), Attach(4, "nobody", 0)])
    service.on_messages(conn, [SendText(5, "it", "hello"), Kill(6, "it", "enough")])
    end_of(host, "it")
    until(lambda: len(client.events) == 1)  # once, though it has attached twice
    service.on_messages(conn, [Attach(7, "it", 0)])
    assert [e.kind for e in client.events] == ["error", "error"]
    assert [type(a) for a in client.answers] == [Completed, Completed, Failed, Failed, Completed, Completed, Completed]
    host.launch(launch("other", "return 1"))
    end_of(host, "other")
    service.on_messages(conn, [Attach(8, "other", 0)])
    assert list(service._attached[id(conn)]) == ["other"]  # the ended one is not kept for the connection's sake
    service.on_close(conn, None)  # type: ignore[arg-type]


def test_an_end_that_cannot_be_sent_ends_the_connection_and_not_the_accounts(host: InferletHost) -> None:
    service, client = ClientService(host), Client()
    conn: Any = client
    service.on_connect(conn)
    host.launch(launch("it", "spin"))
    service.on_messages(conn, [Attach(1, "it", 0)])
    client.error = InvalidRequest("Event takes 99 bytes; a frame holds at most 9")
    host.kill("it", "enough")
    until(lambda: host.num_live == 0)
    assert "cannot be sent" in client.closed[0]


def test_a_failed_result_carries_the_last_log_lines(host: InferletHost) -> None:
    host.launch(launch("trap", "log-and-trap"))
    message = json.loads(end_of(host, "trap").payload)["message"]
    first, *rest = message.splitlines()
    assert "unreachable" in first
    assert "run" in first  # the function of the guest
    assert rest == ["last log lines:", "  error: about to trap"]
    host.launch(launch("quiet", "unreachable"))
    assert "log lines" not in end_of(host, "quiet").payload
