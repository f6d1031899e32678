"""The engine handle without an engine: what it refuses, what it cleans up."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pieray.client import engine as engine_module
from pieray.client.engine import Engine
from pieray.client.process import Process
from pieray.concurrency.off_loop import off_loop
from pieray.config import Config
from pieray.errors import ConfigError, EngineError, InvalidRequest, Overloaded, PeerLost
from pieray.messages import Failed, decode, encode
from pieray.programs.launches import LaunchRequest, prepared
from pieray.programs.sources import ProgramSource
from pieray.transport import Connection, Endpoint, PendingCalls, serve

SOURCE = ProgramSource("demo", "demo.py", source="def main(): ...")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Methods that the Controller was asked for."""
    calls: list[str] = []

    def begin(method: str, *_args: Any) -> Callable[[float], Any]:
        calls.append(method)
        answers = {"token": "t", "ping": 1.0, "launch": Endpoint("inproc", "nobody", 1).to_wire()}
        return lambda _timeout_s: answers.get(method)

    monkeypatch.setattr(engine_module, "asker", lambda _controller: begin)
    return calls


@pytest.fixture
def engine(asked: list[str]) -> Engine:
    return Engine(Config(), None, owns_engine=False, owns_ray=False)


def test_an_inferlet_that_its_client_cannot_reach_is_ended(engine: Engine, asked: list[str]) -> None:
    with pytest.raises((EngineError, PeerLost)):
        engine.launch(SOURCE)
    assert asked == ["token", "grant", "door", "ping", "launch", "kill"]


@pytest.mark.parametrize(
    ("program", "arguments", "limits", "error", "text"),
    [
        (SOURCE, {"x": float("nan")}, {}, InvalidRequest, "JSON"),
        (SOURCE, {"x": object()}, {}, InvalidRequest, "JSON"),
        (SOURCE, {}, {"pages": 10**9}, ConfigError, "limits.pages: this engine allows at most 4096; given 1000000000"),
        (SOURCE, {}, {"pages": float("inf")}, ConfigError, "pages"),
        (ProgramSource("a", "a.py", source="\ud800"), {}, {}, InvalidRequest, "cannot be sent"),
        (ProgramSource("\udcff", "a.py", source="1"), {}, {}, InvalidRequest, "cannot be sent"),
        ("x" * 5000, {}, {}, InvalidRequest, "cannot be read"),
    ],
)
def test_what_cannot_be_launched_is_not_sent(
    engine: Engine,
    asked: list[str],
    program: Any,
    arguments: dict[str, Any],
    limits: dict[str, float],
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        engine.launch(program, arguments, limits=limits)
    assert asked == ["token"]


def test_a_closed_handle_launches_nothing(engine: Engine, asked: list[str]) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.launch(SOURCE)
    assert asked == ["token"]


def test_an_inferlet_whose_launch_was_cancelled_does_not_run_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    launching, go, done = threading.Event(), threading.Event(), threading.Event()

    class Launched:
        def kill(self, reason: str) -> None:
            killed.append(reason)
            done.set()

    def launch(*_: Any, **__: Any) -> Any:
        launching.set()
        assert go.wait(30)
        return Launched()

    monkeypatch.setattr(engine, "launch", launch)

    async def main() -> None:
        task = asyncio.create_task(engine.alaunch(SOURCE))
        assert await off_loop(launching.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        assert await off_loop(done.wait, 30)

    asyncio.run(main())
    assert killed == ["its launch was cancelled"]


def test_a_launch_that_is_cancelled_as_it_comes_back_does_not_run_on() -> None:
    """The thread is done, and the event loop has not heard of it."""
    killed = threading.Event()

    class Link:
        def kill(self, *_: Any) -> None:
            killed.set()

    process = Process("p", "demo", Link())  # type: ignore[arg-type]

    async def ask() -> None:
        task = asyncio.create_task(engine_module._launched(lambda: [process]))
        await asyncio.sleep(0)
        time.sleep(0.1)  # the loop is busy while the launch returns
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    assert killed.wait(5)


def test_of_tenants_with_a_quota_the_controller_decides_each_launch(asked: list[str]) -> None:
    engine = Engine(Config(tenants={"lab": {"inferlets": 3}}), None, owns_engine=False, owns_ray=False)
    engine.tenant = "lab"
    with pytest.raises((EngineError, PeerLost)):
        engine.launch(SOURCE)
    assert asked == ["token", "door", "ping", "launch", "kill"]


class Dying:
    """An actor that takes what it is sent, and dies of it."""

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Any]) -> None:
        conn.close("killed")

    def on_close(self, conn: Connection, error: PeerLost) -> None: ...


@pytest.mark.parametrize("is_dead", [True, False])
def test_what_an_actor_died_with_is_launched_on_another_only_if_it_was_not_sent(
    monkeypatch: pytest.MonkeyPatch, is_dead: bool
) -> None:
    door = serve(Dying(), peer_id="host", incarnation=1, token="t", kind="inproc")
    calls: list[str] = []

    def begin(method: str, *_args: Any) -> Callable[[float], Any]:
        calls.append(method)
        if method == "launch":
            raise EngineError("full")
        answers = {"token": "t", "ping": 1.0, "grant": [[door.endpoint.to_wire(), "g", 4, 30.0, 1.0]]}
        return lambda _timeout_s: answers.get(method)

    monkeypatch.setattr(engine_module, "asker", lambda _controller: begin)
    engine = Engine(Config(), None, owns_engine=False, owns_ray=False)
    if is_dead:
        door.close()
        with pytest.raises(EngineError, match="full"):
            engine.launch(SOURCE)
        assert calls == ["token", "grant", "door", "ping", "launch"]
    else:
        with pytest.raises(PeerLost, match="host was lost when it had the launch of demo-.*, which may have run"):
            engine.launch(SOURCE)
        assert calls == ["token", "grant", "kill"]  # should the link alone be lost
        door.close()


def test_an_overloaded_engine_says_when_to_come_again_on_every_path() -> None:
    error = Overloaded("full", 2.5)
    assert pickle.loads(pickle.dumps(error)).retry_after_s == 2.5
    calls = PendingCalls()
    told: list[Any] = []
    ticket = calls.expect(None, lambda _value, error: told.append(error))  # type: ignore[arg-type]
    (failed,) = decode(encode([Failed(ticket, error.code, error.message, error.retry_after_s)]))
    calls.resolve(None, [failed])  # type: ignore[arg-type]
    assert (type(told[0]), told[0].message, told[0].retry_after_s) == (Overloaded, "full", 2.5)


def test_of_many_the_most_urgent_are_asked_for_first() -> None:
    requests = [LaunchRequest(SOURCE, priority=p, deadline_s=d) for p, d in ((0, None), (0, 9), (-1, 1), (2, None))]
    wanted = [prepared(r, SOURCE, Config().limits, user="u", tenant="t") for r in requests]
    assert [wanted.index(w) for w in sorted(wanted, key=lambda w: w.rank)] == [3, 1, 0, 2]
