"""Runs over websockets: events, messages and files on one connection; who may open one; clients that leave."""

from __future__ import annotations

import contextlib
import json
import socket as sockets
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from programs import ECHO, program
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pieray.server import hosting
from pieray.server.keys import Keys

REVERSE = program(
    """
from inferlet import scratch, session

async def main():
    path = await session.receive_file()
    data = scratch.read(path)
    scratch.write("reversed.bin", data[::-1])
    session.send_file("reversed.bin")
    return len(data)
""",
    "reverse",
)
FLOOD = program(
    """
import asyncio
from inferlet import session

async def main(number: int):
    for _ in range(number):
        session.send("x" * 65536)
        await asyncio.sleep(0.01)
""",
    "flood",
)


@pytest.fixture(scope="module")
def installed(engines: Any) -> Iterator[None]:
    engine = engines("socket")
    for one in (ECHO, REVERSE, FLOOD):
        engine.install(one)
    yield
    for one in (ECHO, REVERSE, FLOOD):
        engine.uninstall(one.name)


@pytest.fixture
def url(door: str, engine: Any, installed: None) -> str:
    return door.replace("http", "ws", 1)


def said(socket: ClientConnection) -> Any:
    return json.loads(socket.recv(timeout=20))


def state_of(url: str, run: str) -> str:
    return str(httpx.get(f"{url.replace('ws', 'http', 1)}/v1/runs/{run}").json()["state"])


def until(holds: Callable[[], Any], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_messages_go_both_ways_and_the_end_closes_it(url: str) -> None:
    with connect(f"{url}/v1/inferlets/echo/runs") as socket:
        socket.send(json.dumps({"messages": ["one"]}))
        begun = said(socket)
        assert (begun["event"], begun["data"]["state"], begun["data"]["program"]) == ("run", "running", "echo")
        assert said(socket) == {"id": 0, "event": "text", "data": "ONE"}
        socket.send(json.dumps({"text": "two"}))
        assert said(socket) == {"id": 1, "event": "text", "data": "TWO"}
        socket.send(json.dumps({"text": "end"}))
        assert said(socket) == {"id": 2, "event": "result", "data": 2}
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1000
    assert state_of(url, begun["data"]["id"]) == "done"


def test_files_go_both_ways_as_bytes(url: str) -> None:
    data = bytes(range(256)) * 4000
    with connect(f"{url}/v1/inferlets/reverse/runs", max_size=None) as socket:
        socket.send("{}")
        run = said(socket)["data"]["id"]
        socket.send(json.dumps({"file": "a.bin"}))
        socket.send(data)
        found = b""
        while (event := said(socket))["event"] == "file":
            assert (event["data"]["name"], event["data"]["offset"]) == ("reversed.bin", len(found))
            part = socket.recv(timeout=20)
            assert isinstance(part, bytes)
            assert len(part) == event["data"]["length"]
            found += part
        assert (event["event"], event["data"]) == ("result", len(data))
        assert found == data[::-1]
    http = url.replace("ws", "http", 1)
    assert httpx.get(f"{http}/v1/runs/{run}/files").json()["data"] == [{"name": "reversed.bin", "size": len(data)}]
    assert httpx.get(f"{http}/v1/runs/{run}/files/reversed.bin").content == data[::-1]


def test_files_go_over_http(url: str) -> None:
    http = url.replace("ws", "http", 1)
    data = b"\x00\xff" * (1 << 20)
    run = httpx.post(f"{http}/v1/inferlets/reverse/runs", json={"wait": False}).json()["id"]
    assert httpx.get(f"{http}/v1/runs/{run}/files").json()["data"] == []
    assert httpx.get(f"{http}/v1/runs/{run}/files/reversed.bin").status_code == 404
    put = httpx.put(f"{http}/v1/runs/{run}/files/deep/a.bin", content=data)
    assert (put.status_code, put.json()["size"]) == (201, len(data))
    until(lambda: state_of(url, run) == "done")
    found = httpx.get(f"{http}/v1/runs/{run}/files/reversed.bin")
    assert found.content == data[::-1]
    assert found.headers["content-disposition"] == "attachment"
    assert httpx.put(f"{http}/v1/runs/{run}/files/a.bin", content=b"a").status_code == 409
    assert httpx.put(f"{http}/v1/runs/nothing/files/a.bin", content=b"a").status_code == 404
    with_it = httpx.post(f"{http}/v1/inferlets/reverse/runs", json={"files": [{"name": "b", "data": "YWJj"}]}).json()
    assert with_it["result"] == 3
    for wrong in ([{"name": "b", "data": "?"}], [{"name": "b"}], [{"name": "../b", "data": ""}]):
        assert httpx.post(f"{http}/v1/inferlets/reverse/runs", json={"files": wrong}).status_code == 400


def test_a_file_that_is_too_large_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    http = url.replace("ws", "http", 1)
    run = httpx.post(f"{http}/v1/inferlets/reverse/runs", json={"wait": False}).json()["id"]
    monkeypatch.setattr("pieray.server.runs.files.MOST_FILE_BYTES", 1000)
    refused = httpx.put(f"{http}/v1/runs/{run}/files/a.bin", content=b"a" * 1001)
    assert (refused.status_code, "1000 bytes" in refused.text) == (413, True)
    httpx.delete(f"{http}/v1/runs/{run}")


def test_a_run_is_taken_up_on_another_connection(url: str) -> None:
    with connect(f"{url}/v1/inferlets/echo/runs") as socket:
        socket.send(json.dumps({"messages": ["a", "b"], "keep_s": 30}))
        run = said(socket)["data"]["id"]
        assert [said(socket)["data"] for _ in range(2)] == ["A", "B"]
    with connect(f"{url}/v1/runs/{run}?last_event_id=0") as socket:
        assert said(socket)["event"] == "run"
        assert said(socket) == {"id": 1, "event": "text", "data": "B"}
        socket.send(json.dumps({"kill": True}))
        ended = said(socket)
        assert (ended["event"], ended["data"]["code"]) == ("error", "cancelled")
    assert state_of(url, run) == "killed"


def test_a_client_that_leaves_ends_its_run(url: str) -> None:
    with connect(f"{url}/v1/inferlets/echo/runs") as socket:
        socket.send("{}")
        run = said(socket)["data"]["id"]
    until(lambda: state_of(url, run) == "killed")


def test_a_client_that_vanishes_ends_its_run(url: str) -> None:
    with connect(f"{url}/v1/inferlets/echo/runs") as socket:
        socket.send("{}")
        run = said(socket)["data"]["id"]
        socket.socket.shutdown(sockets.SHUT_RDWR)
    until(lambda: state_of(url, run) == "killed")


def test_a_client_that_takes_nothing_ends_its_run(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "STALL_S", 0.5)
    monkeypatch.setattr("pieray.server.runs.sockets.STALL_S", 0.5)
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    host, port = url.removeprefix("ws://").split(":")
    raw.connect((host, int(port)))
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    raw.sendall(
        f"GET /v1/inferlets/flood/runs HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        f"sec-websocket-key: {key}\r\nsec-websocket-version: 13\r\n\r\n".encode()
    )
    assert raw.recv(4096).startswith(b"HTTP/1.1 101")
    body = b'{"input": {"number": 5000}}'
    raw.sendall(bytes([0x81, 0x80 | len(body)]) + b"\0\0\0\0" + body)
    http = url.replace("ws", "http", 1)

    def states() -> list[str]:
        rows = httpx.get(f"{http}/v1/runs").json()["data"]
        return [row["state"] for row in rows if row["program"] == "flood"]

    until(lambda: states() == ["killed"], 20)
    raw.settimeout(10)
    with contextlib.suppress(ConnectionResetError):  # or an end: it is closed in any case, and this does not time out
        while raw.recv(1 << 20):
            pass
    raw.close()


def test_what_is_wrong_is_told_and_the_connection_goes_on_or_closes(url: str) -> None:
    with connect(f"{url}/v1/inferlets/echo/runs") as socket:
        socket.send(json.dumps({"messages": []}))
        assert said(socket)["event"] == "run"
        for wrong in ({"txt": "a"}, {"text": 5}, {}, {"kill": False}):
            socket.send(json.dumps(wrong))
            assert said(socket)["event"] == "refused"
        socket.send(b"bytes that nobody announced")
        assert "{file: NAME}" in said(socket)["data"]["message"]
        socket.send("{")
        assert said(socket)["data"]["code"] == "invalid_json"
        socket.send(json.dumps({"text": "still there"}))
        assert said(socket)["data"] == "STILL THERE"
    for body, param in (
        ({"input": {"a": 1}}, "input"),
        ({"stream": True}, "stream"),
        ({"nothing": 1}, "nothing"),
        ([], None),
    ):
        with connect(f"{url}/v1/inferlets/echo/runs") as socket:
            socket.send(json.dumps(body))
            refused = said(socket)
            assert (refused["event"], refused["data"]["param"]) == ("refused", param)
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
    with connect(f"{url}/v1/inferlets/nothing/runs") as socket:
        socket.send("{}")
        assert "no inferlet" in said(socket)["data"]["message"]


def test_a_message_that_is_too_large_closes_it(url: str) -> None:
    with connect(f"{url}/v1/inferlets/echo/runs") as socket:
        socket.send("{}")
        run = said(socket)["data"]["id"]
        with contextlib.suppress(ConnectionClosed):  # it may be before all is sent
            socket.send("x" * (9 << 20))
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
    # What the client had under way when the server hung up resets the connection, at times before the reason is read.
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    until(lambda: state_of(url, run) == "killed")


def test_whoever_sends_no_request_is_hung_up_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pieray.server.runs.sockets.READ_S", 0.3)
    with connect(f"{url}/v1/inferlets/echo/runs") as socket:
        assert "within 0.3 s" in said(socket)["data"]["message"]


def refused_with(url: str, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as refused, connect(url, **options):
        pass
    return refused.value.response.status_code


def test_no_page_of_another_server_opens_one(url: str) -> None:
    path = f"{url}/v1/inferlets/echo/runs"
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert refused_with(path, origin=origin) == 403
    with connect(path, origin=url.replace("ws", "http", 1)) as socket:
        socket.send("{}")
        assert said(socket)["event"] == "run"
    assert refused_with(f"{url}/v1/runs/nothing") == 404
    assert refused_with(f"{url}/v1/nothing") == 403  # how a websocket that has no route is refused


def test_keys_are_asked_for(locked: str, keys: Keys, engine: Any, installed: None) -> None:
    url = locked.replace("http", "ws", 1) + "/v1/inferlets/echo/runs"
    assert refused_with(url) == 401
    ada, bob = (keys.create(tenant=tenant) for tenant in ("lab", "other"))
    with connect(url, additional_headers={"authorization": f"Bearer {ada}"}) as socket:
        socket.send(json.dumps({"messages": ["a"]}))
        run = said(socket)["data"]["id"]
        assert said(socket)["data"] == "A"
        (row,) = [row for row in engine.ps() if row["instance_id"] == run]
        assert row["tenant"] == "lab"
        theirs = locked.replace("http", "ws", 1) + f"/v1/runs/{run}"
        assert refused_with(theirs, additional_headers={"authorization": f"Bearer {bob}"}) == 404
        socket.send(json.dumps({"text": "end"}))
        assert said(socket)["data"] == 1
