"""Programs over HTTP: runs, events that are taken up again, messages, keys that make a launch happen once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from programs import ECHO, program

COUNT = program(
    """
import asyncio
from inferlet import session

async def main(number: int, pause: float = 0.0):
    for i in range(number):
        session.send(str(i))
        session.emit("step", {"i": i})
        await asyncio.sleep(pause)
    return number
""",
    "count",
)
FAIL = program("def main(): raise ValueError('no')", "fail")


@pytest.fixture(scope="module")
def programs(engines: Any) -> Iterator[None]:
    engine = engines("socket")
    for one in (COUNT, ECHO, FAIL):
        engine.install(one)
    yield
    for one in (COUNT, ECHO, FAIL):
        engine.uninstall(one.name)


@pytest.fixture
def http(door: str, engine: Any, programs: None) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=door, timeout=30) as client:
        yield client


def events(lines: Iterator[str]) -> Iterator[tuple[int, str, Any]]:
    number, kind = -1, ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)
        elif name == "event":
            kind = value
        elif name == "data":
            yield number, kind, json.loads(value)


def test_a_run_gives_its_result_and_what_it_sent(http: httpx.Client) -> None:
    answer = http.post("/v1/inferlets/count/runs", json={"input": {"number": 2}})
    found = answer.json()
    assert answer.status_code == 200
    assert (found["state"], found["result"], found["texts"], found["program"]) == ("done", 2, ["0", "1"], "count")
    assert found["data"] == [{"name": "step", "value": {"i": 0}}, {"name": "step", "value": {"i": 1}}]
    assert http.get(f"/v1/runs/{found['id']}").json()["result"] == 2
    assert found["id"] in [row["id"] for row in http.get("/v1/runs").json()["data"]]
    embedded = http.post("/v1/inferlets/text-completion/runs", json={"input": {"prompt": "12+7="}}).json()
    assert embedded["result"]["text"] == "19"


def test_a_stream_is_taken_up_behind_the_last_event(http: httpx.Client) -> None:
    body = {"input": {"number": 30, "pause": 0.02}, "stream": True, "keep_s": 30}
    with http.stream("POST", "/v1/inferlets/count/runs", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        run, coming = answer.headers["x-pieray-run"], events(answer.iter_lines())
        seen = [next(coming) for _ in range(5)]
    with http.stream("GET", f"/v1/runs/{run}/events", headers={"last-event-id": str(seen[-1][0])}) as answer:
        seen += events(answer.iter_lines())
    assert [number for number, _, _ in seen] == list(range(61))
    assert [data for _, kind, data in seen if kind == "text"] == [str(i) for i in range(30)]
    assert seen[-1] == (60, "result", 30)
    with http.stream("GET", f"/v1/runs/{run}/events") as answer:
        assert list(events(answer.iter_lines())) == seen


def test_a_run_that_is_not_kept_ends_with_its_reader(http: httpx.Client) -> None:
    body = {"input": {"number": 1000, "pause": 0.05}, "stream": True}
    with http.stream("POST", "/v1/inferlets/count/runs", json=body) as answer:
        run, lines = answer.headers["x-pieray-run"], answer.iter_lines()
        next(lines)
    until_state(http, run, "killed")


def test_a_run_that_nobody_reads_ends_when_its_time_is_over(http: httpx.Client) -> None:
    body = {"input": {"number": 1000, "pause": 0.05}, "wait": False, "keep_s": 0.1}
    answer = http.post("/v1/inferlets/count/runs", json=body)
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    until_state(http, answer.json()["id"], "killed")


def until_state(http: httpx.Client, run: str, state: str) -> None:
    deadline = time.monotonic() + 10
    while http.get(f"/v1/runs/{run}").json()["state"] != state:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_messages_reach_a_run_and_delete_ends_it(http: httpx.Client) -> None:
    run = http.post("/v1/inferlets/echo/runs", json={"wait": False, "messages": ["one"]}).json()["id"]
    with http.stream("GET", f"/v1/runs/{run}/events") as answer:
        coming = events(answer.iter_lines())
        assert next(coming) == (0, "text", "ONE")
        assert http.post(f"/v1/runs/{run}/messages", json={"text": "two"}).status_code == 202
        assert next(coming) == (1, "text", "TWO")
        ended = http.delete(f"/v1/runs/{run}").json()
        assert (ended["state"], ended["error"]["code"]) == ("killed", "cancelled")
        number, kind, data = next(coming)
        assert (number, kind, data["code"]) == (2, "error", "cancelled")


def test_a_key_launches_once(http: httpx.Client, engine: Any) -> None:
    body = {"input": {"number": 3, "pause": 0.1}}

    def post(_: int) -> Any:
        return http.post("/v1/inferlets/count/runs", json=body, headers={"idempotency-key": "k1"}).json()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(post, range(4)))
    assert len({answer["id"] for answer in answers}) == 1
    assert [answer["result"] for answer in answers] == [3] * 4
    other = http.post("/v1/inferlets/count/runs", json={"input": {"number": 4}}, headers={"idempotency-key": "k1"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
    for _ in range(2):  # what failed may be tried again
        wrong = http.post(
            "/v1/inferlets/count/runs",
            json={"input": {"number": 4}, "limits": {"pages": 1e9}},
            headers={"idempotency-key": "k2"},
        )
        assert wrong.status_code == 400


def test_a_program_that_fails_says_so(http: httpx.Client) -> None:
    answer = http.post("/v1/inferlets/fail/runs", json={})
    assert answer.status_code == 500
    assert answer.json()["state"] == "failed"
    assert answer.json()["error"]["code"] == "guest-failed"
    with http.stream("POST", "/v1/inferlets/fail/runs", json={"stream": True}) as streamed:
        *_, (_, kind, data) = events(streamed.iter_lines())
    assert (kind, data["code"]) == ("error", "guest-failed")
    assert "ValueError: no" in data["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("count", {"input": {"numbr": 1}}, 400, "input"),
        ("count", {"input": {"number": "x"}}, 400, "input"),
        ("count", {"input": []}, 400, "input"),
        ("count", {"inputs": {}}, 400, "inputs"),
        ("count", {"input": {"number": 1}, "priority": 101}, 400, "priority"),
        ("count", {"input": {"number": 1}, "stream": True, "wait": False}, 400, "wait"),
        ("count", {"input": {"number": 1}, "limits": {"nothing": 1}}, 400, None),
        ("..%2f..%2fREADME.md", {}, 404, None),
        ("nothing", {}, 404, "model"),
    ],
)
def test_what_is_wrong_is_refused(http: httpx.Client, path: str, body: Any, status: int, param: str | None) -> None:
    answer = http.post(f"/v1/inferlets/{path}/runs", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


def test_runs_that_are_not_there(http: httpx.Client) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        assert http.request(method, f"/v1/runs/nothing{path}").status_code == 404
    run = http.post("/v1/inferlets/count/runs", json={"input": {"number": 1}}).json()["id"]
    assert http.get(f"/v1/runs/{run}/events", headers={"last-event-id": "x"}).status_code == 400
    assert http.post(f"/v1/runs/{run}/messages", json={"txt": "a"}).status_code == 400


def test_programs_are_listed(http: httpx.Client) -> None:
    rows = {row["name"]: row for row in http.get("/v1/inferlets").json()["data"]}
    assert rows["text-completion"]["is_embedded"]
    assert not rows["count"]["is_embedded"]
