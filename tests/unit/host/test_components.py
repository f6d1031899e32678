"""Launches of components that must be compiled first: nobody waits for another tenant's compilations."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime
from components import component
from fakes import PAGE_SIZE, VOCAB, byte_tokenizer
from groups import Group, until

from pieray.config import Config
from pieray.errors import Cancelled, InvalidRequest, QuotaExceeded
from pieray.host import components
from pieray.host.clients import ClientService
from pieray.host.core import InferletHost
from pieray.host.device.model_devices import ModelDevices
from pieray.host.models import ModelDirectory, ModelInfo, ServedModel
from pieray.messages import AwaitStart, Completed, Failed, Launch, Message
from pieray.wasm import host as wasm_host
from pieray.wasm.compiler import compiled

COMPONENT = component()
WAIT_S = 120.0
DONE = ("result", "null")


def unlike(number: int) -> bytes:
    """A component that returns nothing, and that no cache has: a custom section tells it from COMPONENT."""
    name = b"variant-%d" % number
    return COMPONENT + bytes([0, 1 + len(name), len(name)]) + name


def launch(instance_id: str, content: bytes, tenant: str, **limits: float) -> Launch:
    return Launch(instance_id, "raw", "raw.wasm", "", content, "{}", limits, tenant=tenant)


class SlowCompiler:
    """In place of `compiled`: components of those in `slow` wait until `release` is set."""

    def __init__(self) -> None:
        self.slow: set[bytes] = set()
        self.release = threading.Event()
        self.names: list[str] = []

    def __call__(self, wasm: bytes, name: str, limits: object) -> Path:
        self.names.append(name)
        if wasm in self.slow:
            assert self.release.wait(WAIT_S)
        return compiled(wasm, name, limits)  # type: ignore[arg-type]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SlowCompiler]:
    monkeypatch.setenv("PIERAY_CACHE", str(tmp_path / "cache"))
    compiler = SlowCompiler()
    monkeypatch.setattr(wasm_host, "compiled", compiler)
    yield compiler
    compiler.release.set()


@pytest.fixture
def host(slow: SlowCompiler) -> Iterator[InferletHost]:
    with contextlib.closing(Group(num_pages=20)) as group:
        info = ModelInfo("fake", "llama", VOCAB, 1024, PAGE_SIZE, 20, "float32", "cpu")
        models = ModelDirectory([ServedModel(info, byte_tokenizer())])
        host = InferletHost(Config(inferlets_per_actor=128), ModelDevices(group.sessions("host")), models)
        yield host
        slow.release.set()
        host.close()
        until(lambda: group.free() == 20)


def state_of(host: InferletHost, instance_id: str) -> str:
    return {row["instance_id"]: row["state"] for row in host.status()}[instance_id]


def ending(host: InferletHost, instance_id: str) -> tuple[str, str]:
    until(lambda: host.find(instance_id).log.is_ended, WAIT_S)
    event = host.find(instance_id).log._events[-1]
    return event.kind, str(event.payload)


class Client:
    """A connection's other end, without one."""

    peer_id = "client"

    def __init__(self) -> None:
        self.answers: list[Message] = []

    def send(self, messages: list[Message]) -> None:
        self.answers += messages


def test_a_launch_waits_for_no_compilation_and_nobody_for_another_tenants(
    host: InferletHost, slow: SlowCompiler
) -> None:
    """Line 8 of the report: 16 components that take their time, beside one of another tenant and Python."""
    slow.slow = {unlike(n) for n in range(16)}
    began = time.monotonic()
    for n in range(16):
        host.launch(launch(f"greedy-{n}", unlike(n), "greedy"))
    assert time.monotonic() - began < WAIT_S / 2  # none was waited for: they do not end before `release`
    assert {row["state"] for row in host.status()} == {"starting"}
    host.launch(launch("modest", unlike(99), "modest"))
    assert ending(host, "modest") == DONE
    assert state_of(host, "greedy-0") == "starting"
    slow.release.set()
    assert ending(host, "greedy-0") == DONE


def test_two_launches_of_one_component_share_its_compilation(host: InferletHost, slow: SlowCompiler) -> None:
    slow.slow = {unlike(0)}
    for n in range(4):
        host.launch(launch(f"same-{n}", unlike(0), "a"))
    slow.release.set()
    assert [ending(host, f"same-{n}") for n in range(4)] == [DONE] * 4
    assert slow.names == ["raw"]
    host.launch(launch("later", unlike(0), "b"))
    assert state_of(host, "later") != "starting"
    assert slow.names == ["raw"]


def test_who_waits_to_be_compiled_can_be_killed_and_gives_its_place_back(
    host: InferletHost, slow: SlowCompiler
) -> None:
    slow.slow = {unlike(0), unlike(1)}
    host.launch(launch("first", unlike(0), "a"))
    until(lambda: slow.names == ["raw"], WAIT_S)
    host.launch(launch("second", unlike(1), "a"))
    for name in ("second", "first"):
        host.kill(name, "no longer wanted")
        assert json.loads(ending(host, name)[1]) == {"code": "cancelled", "message": "no longer wanted"}
    until(lambda: host.num_live == 0, WAIT_S)
    slow.release.set()
    with pytest.raises(Cancelled, match="no longer wanted"):
        host.find("first").started.result(0)
    host.launch(launch("third", unlike(2), "a"))
    assert ending(host, "third") == DONE
    assert len(slow.names) == 2  # the second was taken out of the queue


def test_a_component_that_is_none_is_refused_and_its_client_told(host: InferletHost) -> None:
    with pytest.raises(InvalidRequest, match="no WebAssembly component"):
        host.launch(launch("text", b"print(1)", "a"))
    bad = COMPONENT[:8] + b"garbage"
    host.launch(launch("bad", bad, "a"))
    service, client = ClientService(host), Client()
    service.on_connect(client)  # type: ignore[arg-type]
    service.on_messages(client, [AwaitStart(7, "bad")])  # type: ignore[arg-type]
    until(lambda: client.answers, WAIT_S)
    answer = client.answers[0]
    assert isinstance(answer, Failed)
    assert (answer.ticket, answer.code) == (7, "invalid")
    assert "raw is no valid component" in answer.message
    assert json.loads(ending(host, "bad")[1])["code"] == "invalid"
    until(lambda: host.num_live == 0, WAIT_S)
    nothing = bytes(wasmtime.wat2wasm("(component)"))
    host.launch(launch("nothing", nothing, "a"))
    assert "does not export run" in ending(host, "nothing")[1]
    with pytest.raises(InvalidRequest, match="does not export run"):  # compiled by now: the launch itself says so
        host.launch(launch("again", nothing, "a"))
    host.launch(launch("good", unlike(0), "a"))
    service.on_messages(client, [AwaitStart(8, "good")])  # type: ignore[arg-type]
    until(lambda: len(client.answers) == 2, WAIT_S)
    assert client.answers[1] == Completed(8, None)


def test_a_tenant_has_so_many_components_waiting(
    host: InferletHost, slow: SlowCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = components.MAX_WAITING
    slow.slow = {unlike(n) for n in range(most + 1)}
    host.launch(launch("running", unlike(0), "a"))
    until(lambda: slow.names == ["raw"], WAIT_S)
    for n in range(most):
        host.launch(launch(f"waiting-{n}", unlike(n + 1), "a"))
    with pytest.raises(QuotaExceeded, match=f"compiling components: at most {most} jobs of one tenant wait"):
        host.launch(launch("one-more", unlike(most + 1), "a"))
    host.launch(launch("other", unlike(most + 2), "b"))
    assert ending(host, "other") == DONE
    until(lambda: host.num_live == most + 1, WAIT_S)


def test_waiting_for_a_compiler_counts_against_wall_time(host: InferletHost, slow: SlowCompiler) -> None:
    slow.slow = {unlike(0)}
    host.launch(launch("first", unlike(0), "a"))
    until(lambda: slow.names == ["raw"], WAIT_S)
    host.launch(launch("second", unlike(1), "a", wall_time_s=0.2))
    assert json.loads(ending(host, "second")[1])["code"] == "deadline"
