"""The Controller's socket, with a real connection and a scripted Controller."""

from __future__ import annotations

import ast
import inspect
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import pieray.client.connecting
import pieray.client.engine
import pieray.client.launching
from pieray.actors.controller import Controller as RealController
from pieray.actors.door import METHODS, ControllerDoor
from pieray.client.connecting import connect_door
from pieray.client.controller_calls import ControllerCalls
from pieray.client.controller_link import ControllerLink, LaunchPath
from pieray.config import Config
from pieray.errors import Denied, EngineError, InvalidRequest, NoAnswer, NotFound, PeerLost
from pieray.transport import Listener, serve

TOKEN = "t" * 64


class Controller:
    endpoint: tuple[Any, ...] = ()

    def door(self) -> tuple[Any, ...]:
        return self.endpoint

    def launch(self, frame: bytes, sent_at: float, deadline: float) -> list[Any]:
        self.launched.append(frame)
        return ["actor", len(self.launched)]

    def ping(self) -> float:
        return time.monotonic()

    def __init__(self) -> None:
        self.launched: list[bytes] = []
        self.go = threading.Event()
        self.killed: list[tuple[str, str]] = []

    def config(self) -> dict[str, Any]:
        return {"namespace": "blue", "limits": {"pages": 7}}

    def ps(self) -> list[dict[str, Any]]:
        return [{"instance_id": "a", "ended_at": None, "cpu_time_s": 0.5}]

    def kill(self, instance_id: str, reason: str) -> None:
        if instance_id == "none":
            raise NotFound("no inferlet 'none'")
        self.killed.append((instance_id, reason))

    def models(self) -> None:
        raise ZeroDivisionError("oops")

    def status(self) -> None:
        assert self.go.wait(30)

    def programs(self) -> object:
        return object()

    def program(self, *_: object) -> None:
        raise PeerLost("an actor is gone")

    def token(self) -> str:
        return "secret"


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def door(controller: Controller) -> Iterator[Listener]:
    listener = serve(ControllerDoor(controller), peer_id="pieray.controller", incarnation=1, token=TOKEN, host="")
    yield listener
    controller.go.set()
    listener.close()


@pytest.fixture
def link(door: Listener) -> Iterator[ControllerLink]:
    link = ControllerLink(door.endpoint, TOKEN)
    yield link
    link.close()


def test_an_engine_is_used_through_it_without_ray(door: Listener, controller: Controller) -> None:
    with connect_door(door.endpoint.to_wire(), TOKEN) as engine:
        assert (engine.config.namespace, engine.config.limits.pages) == ("blue", 7)
        assert engine.ps() == [{"instance_id": "a", "ended_at": None, "cpu_time_s": 0.5}]
        engine.kill("a", "enough")
    assert controller.killed == [("a", "enough")]
    with pytest.raises(EngineError, match="closed"):
        engine.ps()


def test_errors_of_the_controller_come_through_as_their_classes(link: ControllerLink) -> None:
    with pytest.raises(NotFound, match="no inferlet 'none'"):
        link.begin("kill", "none", "")(30)
    with pytest.raises(PeerLost, match="an actor is gone"):  # the Controller itself lives
        link.begin("program")(30)
    with pytest.raises(EngineError, match="models failed in the engine: ZeroDivisionError: oops"):
        link.begin("models")(30)
    with pytest.raises(InvalidRequest, match="cannot be"):
        link.begin("programs")(30)


@pytest.mark.parametrize("method", ["token", "pid", "start", "__init__", "", "x" * 1000])
def test_only_what_is_meant_for_clients_can_be_asked_for(link: ControllerLink, method: str) -> None:
    with pytest.raises(InvalidRequest, match="for clients"):
        link.begin(method)(30)


def test_a_wrong_number_of_arguments_fails_that_ask_alone(link: ControllerLink) -> None:
    with pytest.raises(EngineError, match="kill failed in the engine: TypeError"):
        link.begin("kill")(30)
    assert link.begin("ps")(30)


def test_without_the_token_nothing_is_answered(door: Listener) -> None:
    with pytest.raises(Denied):
        ControllerLink(door.endpoint, "u" * 64)


def test_a_silent_controller_is_a_deadline_and_holds_up_no_other_ask(link: ControllerLink) -> None:
    with pytest.raises(EngineError, match=r"did not answer status within 0\.05 s"):
        link.begin("status")(0.05)
    assert link.begin("ps")(30)


def test_a_dead_controller_answers_who_waits(door: Listener, link: ControllerLink) -> None:
    threading.Timer(0.05, door.close).start()
    with pytest.raises(EngineError, match="Controller is gone"):
        link.begin("status")(30)
    with pytest.raises(EngineError, match="Controller is gone"):
        link.begin("ps")(30)


def test_a_default_config_travels(door: Listener, controller: Controller) -> None:
    import dataclasses

    controller.config = lambda: dataclasses.asdict(Config(http_hosts=("a.example",)))  # type: ignore[method-assign]
    with connect_door(door.endpoint.to_wire(), TOKEN) as engine:
        assert engine.config == Config(http_hosts=("a.example",))


def test_all_that_an_engine_asks_of_its_controller_goes_through_the_door() -> None:
    """But for what a Ray driver alone needs: the token, and where the door is."""
    asked = {
        node.args[0].value
        for module in (pieray.client.connecting, pieray.client.engine, pieray.client.launching)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"_ask", "ask", "tell"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert {"exports", "ps", "kill", "shutdown"} <= asked
    assert asked - {"token", "door"} <= METHODS
    assert [name for name in METHODS if not callable(getattr(RealController, name, None))] == []


def test_launches_go_through_the_socket_that_is_dialled_again_when_it_breaks(
    controller: Controller, door: Listener
) -> None:
    asked: list[str] = []

    def begin(method: str, *args: Any) -> Any:  # as a Ray handle's
        asked.append(method)
        found = getattr(controller, method)(*args)
        return lambda _timeout_s: found

    path = LaunchPath(ControllerCalls(begin), TOKEN)
    assert path.calls().launch(b"1", 10.0) == ["actor", 1]  # it has no socket: by Ray calls
    assert asked == ["door", "ping", "launch"]
    controller.endpoint = door.endpoint.to_wire()
    for number in (2, 3):
        assert path.calls().launch(b"2", 10.0) == ["actor", number]
    assert asked[3:] == ["door"]
    assert path._door is not None
    path._door[0].close()
    assert path.calls().launch(b"3", 10.0) == ["actor", 4]
    assert asked[4:] == ["door"]
    door.close()
    path._door[0].close()
    assert path.calls().launch(b"4", 10.0) == ["actor", 5]  # nobody is at the socket
    assert asked[5:] == ["door", "launch"]
    path.close()


def test_those_who_launch_at_a_silent_controller_wait_for_one_dial_together_and_closing_waits_for_none() -> None:
    is_asked = threading.Event()

    def begin(_method: str, *_: Any) -> Any:
        def answer(_timeout_s: float) -> Any:
            is_asked.set()
            time.sleep(0.5)
            raise NoAnswer("frozen")

        return answer

    path = LaunchPath(ControllerCalls(begin), TOKEN)
    with ThreadPoolExecutor(16) as threads:
        began = time.monotonic()
        waiting = [threads.submit(path.calls) for _ in range(16)]
        assert is_asked.wait(30.0)
        path.close()
        assert not waiting[0].done()
        for one in waiting:
            with pytest.raises(NoAnswer, match="frozen or out of reach"):
                one.result(30.0)
    assert time.monotonic() - began < 8.0, "one after another they take 16 s"
