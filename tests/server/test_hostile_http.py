"""Clients that are wrong, slow, hostile or gone: each gets its answer, and nobody else feels it."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from pieray.server import bodies, hosting

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "12+7=? Think step by step."}], "temperature": 0}
ENDLESS = {**HELLO, "ignore_eos": True, "stream": True, "max_tokens": 900}


@pytest.fixture
def http(door: str, engine: Any) -> Any:
    with httpx.Client(base_url=door, timeout=30) as client:
        yield client


def address_of(door: str) -> tuple[str, int]:
    parts = urlsplit(door)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def raw(door: str, data: bytes, timeout_s: float = 20.0) -> bytes:
    """What comes back for these bytes, until the server hangs up or has answered."""
    with socket.create_connection(address_of(door), timeout_s) as sock:
        sock.sendall(data)
        found = b""
        while part := sock.recv(1 << 16):
            found += part
            if b"\r\n\r\n" in found:
                break
        return found


def head(length: int, *more: str, path: str = CHAT) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", f"content-length: {length}"]
    return "\r\n".join([*lines, *more, "", ""]).encode()


BODIES = [
    (b"", 400, "no JSON"),
    (b"{", 400, "no JSON"),
    (b"[]", 400, "JSON object"),
    (b'"text"', 400, "JSON object"),
    (b'{"temperature": NaN}', 400, "NaN"),
    (b'{"n": ' + b"9" * 5000 + b"}", 400, "no JSON"),
    (b"\xff\xfe", 400, "no JSON"),
    (b'{"user": "\\ud800"}', 400, "surrogate"),
    (b'{"user": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, ""),
    (b'{"user": ' + b"[" * 80 + b"]" * 80 + b"}", 400, "nested"),
    (b'{"user": ' + b'{"a": ' * 50_000, 400, ""),
    (b" " * (bodies.MOST_BYTES + 1), 413, "at most"),
]


@pytest.mark.parametrize(("body", "status", "text"), BODIES, ids=[str(at) for at in range(len(BODIES))])
def test_a_broken_body_is_refused(http: httpx.Client, body: bytes, status: int, text: str) -> None:
    answer = http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert text in error["message"]
    assert error["type"] == "invalid_request_error"
    assert http.post(CHAT, json=HELLO).status_code == 200


def test_a_huge_body_without_a_length_is_cut_off(http: httpx.Client) -> None:
    def parts() -> Any:
        for _ in range(64):
            yield b" " * (1 << 18)

    answer = http.post(CHAT, content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_web_page_may_send_unasked_is_no_request(http: httpx.Client, kind: str) -> None:
    answer = http.post(CHAT, content=json.dumps(HELLO).encode(), headers={"content-type": kind})
    assert answer.status_code == 415
    asked = http.options(CHAT, headers={"origin": "https://evil.example", "access-control-request-method": "POST"})
    assert asked.status_code == 405
    assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "", "127.0.0.1.evil.example", "[::2]:80"])
def test_a_name_that_leads_here_from_elsewhere_is_refused(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_names_of_this_machine_are_taken(http: httpx.Client, host: str) -> None:
    assert http.get("/version", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2fREADME.md", "//v1/models", "/v1/models/a%00b", "/docs"]
)
def test_paths_lead_nowhere_else(door: str, path: str) -> None:
    found = raw(door, f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    assert found.startswith(b"HTTP/1.1 404"), found[:200]


def test_a_head_of_any_size_is_bounded(door: str) -> None:
    refused = b"HTTP/1.1 400", b"HTTP/1.1 431"
    assert raw(door, head(2, "x-bomb: " + "a" * (64 << 10)) + b"{}").startswith(refused)
    assert raw(door, head(2, *[f"x-{n}: a" for n in range(8000)]) + b"{}").startswith(refused)
    assert raw(door, head(2, "x-bomb: " + "a" * (512 << 10))).startswith(refused)
    assert raw(door, b"GET / HTTP/9.9\r\n\r\n").startswith(b"HTTP/1.1 403")  # it names no host
    assert raw(door, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_slow_head_and_a_slow_body_end(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "HEAD_S", 0.5)
    monkeypatch.setattr(bodies, "READ_S", 0.5)
    began = time.monotonic()
    assert raw(door, b"POST /v1/chat/completions HT") == b""
    assert raw(door, b"") == b""
    assert raw(door, head(100) + b'{"a":').startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 5


def test_a_client_that_leaves_ends_its_inferlet(http: httpx.Client, engine: Any) -> None:
    with http.stream("POST", CHAT, json=ENDLESS) as answer:
        run = answer.headers["x-pieray-run"]
        lines = answer.iter_lines()
        next(lines)
        assert state_of(engine, run) == "running"
    until(lambda: state_of(engine, run) == "killed")


def test_a_client_that_leaves_before_its_answer_does_too(door: str, engine: Any) -> None:
    before = {row["instance_id"] for row in engine.ps()}
    body = json.dumps({**ENDLESS, "stream": False}).encode()
    with socket.create_connection(address_of(door), 20) as sock:
        sock.sendall(head(len(body)) + body)
        until(lambda: [row for row in engine.ps() if row["instance_id"] not in before and row["state"] == "running"])
    until(lambda: [row["state"] for row in engine.ps() if row["instance_id"] not in before] == ["killed"])


def test_a_client_that_reads_nothing_ends_too(door: str, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pieray.server.streams.STALL_S", 0.5)
    body = json.dumps({**ENDLESS, "n": 16, "logprobs": True, "top_logprobs": 20}).encode()
    before = {row["instance_id"] for row in engine.ps()}
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(address_of(door))
        sock.sendall(head(len(body)) + body)
        until(lambda: "killed" in [row["state"] for row in engine.ps() if row["instance_id"] not in before], 60)


def state_of(engine: Any, run: str) -> str:
    return next(str(row["state"]) for row in engine.ps() if row["instance_id"] == run)


def until(holds: Callable[[], Any], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_thousand_idle_connections_keep_nobody_waiting(http: httpx.Client, door: str) -> None:
    hosting._raise_file_limit()

    def median_ms() -> float:
        took = []
        for _ in range(20):
            began = time.perf_counter()
            assert http.post(CHAT, json={**HELLO, "max_tokens": 2}).status_code == 200
            took.append((time.perf_counter() - began) * 1e3)
        return statistics.median(took)

    alone = median_ms()
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(socket.create_connection(address_of(door), 20))
        beside = median_ms()
    assert beside < 2 * alone + 5, (alone, beside)
