"""The door's edges without an engine: bodies, streams, connections, the file of keys, handles of tenants."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from pieray.client.process import Event, Process
from pieray.server import bodies, hosting, streams
from pieray.server.app import Door
from pieray.server.bodies import INLINE_BYTES, read_json
from pieray.server.guard import Guard
from pieray.server.hosting import listening, serve
from pieray.server.json_texts import encoded, loaded
from pieray.server.keys import Caller, Keys
from pieray.server.openai.answers import ChatAnswer
from pieray.server.openai.requests import read_chat
from pieray.server.problems import HttpProblem
from pieray.server.runs.wanted import read_run
from pieray.server.streams import EventStream
from pieray.server.tenants import Tenants


def request_of(body: bytes) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}, receive)


@pytest.mark.parametrize(("size", "is_beside"), [(10, False), (INLINE_BYTES + 1, True)])
def test_a_large_body_is_checked_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, size: int, is_beside: bool
) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(bodies, "_check", lambda _: threads.append(threading.current_thread()))
    body = json.dumps({"a": "x" * size}).encode()
    assert asyncio.run(read_json(request_of(body))) == {"a": "x" * size}
    assert (threads[0] is not threading.current_thread()) == is_beside


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_what_is_no_finite_number_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match="number"):
        loaded(f'{{"a": {number}}}')
    with pytest.raises(HttpProblem, match="no JSON"):
        asyncio.run(read_json(request_of(b'{"a": %s}' % number.encode())))


def test_names_that_a_client_made_up_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("difflib.get_close_matches", lambda *_, **__: pytest.fail("compared"))
    for read in (read_chat, read_run):
        with pytest.raises(HttpProblem) as refused:
            read({"x" * 1_000_000: 1})
        assert len(json.dumps(refused.value.body)) < 1000


def test_half_a_surrogate_pair_of_a_program_is_escaped() -> None:
    assert json.loads(encoded({"a": "\udc80"})) == {"a": "\udc80"}
    assert b"\\udc80" in ChatAnswer("id", "m", 0).text("\udc80")


class Demo:
    """An engine whose inferlet returns `value`."""

    tenant = user = "local"

    def __init__(self, value: Any) -> None:
        self._value = value

    async def alaunch(self, *_: Any, **__: Any) -> Process:
        process = Process("p", "demo", None)  # type: ignore[arg-type]
        process.add([Event("result", json.dumps(self._value), 0)])
        return process

    def models(self) -> Any:
        raise RuntimeError("something")


@pytest.mark.parametrize("value", [{}, 5, {"choices": [{}], "usage": {}}])
def test_a_program_that_answers_otherwise_is_told_in_openais_shape(value: Any) -> None:
    async def ask() -> list[httpx.Response]:
        app = Door(Demo(value), model="m").app(Guard())  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            body = {"messages": [{"role": "user", "content": "a"}]}
            return [await http.post("/v1/chat/completions", json=body), await http.get("/health")]

    for answer in asyncio.run(ask()):
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"


def test_an_idle_stream_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.03)
    sent: list[bytes] = []

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        await asyncio.sleep(0.2)
        yield b"data: 2\n\n"

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.sleep(60)

    asyncio.run(EventStream(chunks(), lambda: None, {})({"type": "http"}, receive, send))
    assert (sent[1], sent[-2], sent[-1]) == (b"data: 1\n\n", b"data: 2\n\n", b"")
    assert set(sent[2:-2]) == {b": still here\n\n"}


def hosted(app: Any) -> tuple[int, threading.Event, threading.Thread]:
    guard, bound, leave, ready = Guard(), listening("127.0.0.1", 0), threading.Event(), threading.Event()
    options = {"wants_end": lambda: 0.0 if leave.is_set() else None, "on_ready": ready.set}
    hosting_it = threading.Thread(target=serve, args=(guard.around(app), guard, bound), kwargs=options, daemon=True)
    hosting_it.start()
    assert ready.wait(10)
    return bound.getsockname()[1], leave, hosting_it


def test_a_client_that_takes_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain answer: to close the connection would wait for the client to take what is buffered."""
    monkeypatch.setattr(hosting, "STALL_S", 0.4)
    port, leave, thread = hosted(Response(b"x" * (32 << 20)))
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        time.sleep(1.2)
        client.settimeout(10)
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(1 << 20):
                taken += len(part)
        assert taken < 32 << 20, "all of it came"
    leave.set()
    thread.join(10)


def test_whom_a_request_is_for_is_not_believed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(scope["client"][0])(scope, receive, send)

    port, leave, thread = hosted(app)
    answer = httpx.get(f"http://127.0.0.1:{port}/", headers={"x-forwarded-for": "10.1.2.3"})
    leave.set()
    thread.join(10)
    assert answer.text == "127.0.0.1"


def test_a_locked_file_of_keys_lets_nobody_in_and_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    keys = Keys(path, create=True, wait_s=0.05)
    made = keys.create()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(Guard(keys).around(PlainTextResponse("in"))), base_url="http://localhost"
        ) as http:
            return await http.get("/", headers={"authorization": f"Bearer {made}"})

    began = time.monotonic()
    assert asyncio.run(ask()).status_code == 503
    assert time.monotonic() - began < 2
    other.execute("ROLLBACK")
    assert asyncio.run(ask()).text == "in"
    other.close()
    keys.close()


class Handle:
    tenant = user = "local"

    def __init__(self) -> None:
        self.is_open = True
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_a_tenants_broken_handle_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Handle] = []

    def opening(*_: Any) -> Handle:
        opened.append(Handle())
        return opened[-1]

    monkeypatch.setattr(Tenants, "_open", opening)
    lab = Caller("k", "lab")

    async def ask() -> None:
        tenants = Tenants(Handle())  # type: ignore[arg-type]
        first: Any = await tenants.engine_of(lab)
        assert await tenants.engine_of(lab) is first
        first.is_open = False
        assert await tenants.engine_of(lab) is opened[1]
        await tenants.close()

    asyncio.run(ask())
    assert [one.is_closed for one in opened] == [True, True]


def test_what_is_opened_for_tenants_is_closed_at_the_end() -> None:
    guard, bound, closed = Guard(), listening("127.0.0.1", 0), list[bool]()

    async def close() -> None:
        closed.append(True)

    serve(Response(b""), guard, bound, wants_end=lambda: 0.0, on_ready=lambda: None, on_end=close)
    assert closed == [True]
