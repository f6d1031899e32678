"""A door that asks for keys: nobody passes without one, and tenants do not see each other."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from programs import ECHO

from pieray.server import guard
from pieray.server.keys import Keys

HELLO = {"messages": [{"role": "user", "content": "12+7=? Think step by step."}], "temperature": 0}
CHAT = "/v1/chat/completions"
ROUTES = [
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/health"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/v1/inferlets"),
    ("POST", "/v1/inferlets"),
    ("POST", "/v1/inferlets/echo/runs"),
    ("POST", "/mcp"),
    ("GET", "/v1/runs"),
    ("PUT", "/v1/runs/x/files/a"),
    ("GET", "/v1/runs/x/files/a"),
    ("DELETE", "/v1/runs/x"),
    ("GET", "/nothing"),
]


def client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_is_open(locked: str, keys: Keys, monkeypatch: pytest.MonkeyPatch, method: str, path: str) -> None:
    monkeypatch.setattr("pieray.server.keys.Rates.failed", lambda *_: 0.0)
    wrong = ("", "Bearer", "Bearer x", f"Bearer {keys.create()}x", f"Basic {keys.create()}", keys.create())
    for authorization in wrong:
        answer = httpx.request(method, locked + path, headers={"authorization": authorization}, json={})
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_key_opens_under_any_host(locked: str, keys: Keys, engine: Any) -> None:
    with client(locked, keys.create()) as http:
        answer = http.post(CHAT, json=HELLO, headers={"host": "pieray.example"})
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 22


def test_whoever_guesses_is_told_to_wait(locked: str, keys: Keys) -> None:
    seen = {httpx.get(f"{locked}/v1/models", headers={"authorization": "Bearer x"}).status_code for _ in range(30)}
    assert seen == {401, 429}
    with client(locked, keys.create()) as http:
        assert http.get("/version").status_code == 200, "a right key passes all the same"


def test_a_revoked_key_is_refused_within_a_second(locked: str, keys: Keys) -> None:
    key = keys.create()
    with client(locked, key) as http:
        assert http.get("/version").status_code == 200
        keys.revoke(key.split("-")[1])
        time.sleep(1)
        assert http.get("/version").status_code in (401, 429)


def test_rates_of_requests_and_tokens(locked: str, keys: Keys, engine: Any) -> None:
    with client(locked, keys.create(requests=2)) as http:
        assert [http.get("/version").status_code for _ in range(3)] == [200, 200, 429]
        refused = http.get("/version")
        assert "2 requests a minute" in refused.json()["error"]["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 31
    for stream in (False, True):
        key = keys.create(tokens=10)
        with client(locked, key) as http:
            assert http.post(CHAT, json={**HELLO, "stream": stream}).status_code == 200
            deadline = time.monotonic() + 5
            while (answer := http.get("/version")).status_code == 200:
                assert time.monotonic() < deadline
            assert "10 tokens a minute" in answer.json()["error"]["message"]


def test_tokens_of_children_count_for_the_key(locked: str, keys: Keys, engine: Any) -> None:
    with client(locked, keys.create(tokens=5)) as http:
        run = http.post("/v1/inferlets/map-reduce/runs", json={"input": {"questions": ["12+7="]}})
        assert run.json()["result"]["total"] == 19, run.text
        (row,) = [row for row in engine.ps() if row["instance_id"] == run.json()["id"]]
        assert row["tokens_computed"] + row["tokens_found"] == 0, "all are its child's"
        deadline = time.monotonic() + 5
        while (answer := http.get("/version")).status_code == 200:
            assert time.monotonic() < deadline
        assert "5 tokens a minute" in answer.json()["error"]["message"]


def test_a_key_has_a_highest_priority_over_http(locked: str, keys: Keys, engine: Any) -> None:
    with client(locked, keys.create(max_priority=2)) as http:
        run = {"input": {"prompt": "12+7="}}
        for priority, status in ((2, 200), (-100, 200), (3, 403)):
            answer = http.post("/v1/inferlets/text-completion/runs", json={**run, "priority": priority})
            assert answer.status_code == status
            chat = http.post(CHAT, json={**HELLO, "priority": -priority})
            assert chat.status_code == status
        assert "the highest of this key is 2; given 3" in chat.json()["error"]["message"]


def test_a_tenant_does_not_see_the_runs_of_another(locked: str, keys: Keys, engine: Any) -> None:
    engine.install(ECHO)
    ada, bob = keys.create(tenant="lab", user="ada"), keys.create(tenant="other")
    boss = keys.create(tenant="ops", role="admin")
    with client(locked, ada) as mine, client(locked, bob) as others, client(locked, boss) as admins:
        run = mine.post("/v1/inferlets/echo/runs", json={"wait": False}).json()["id"]
        (row,) = [row for row in engine.ps() if row["instance_id"] == run]
        assert (row["tenant"], row["user"]) == ("lab", "ada")
        assert others.get("/v1/runs").json()["data"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
            assert others.request(method, f"/v1/runs/{run}{path}").status_code == 404
        assert others.post(f"/v1/runs/{run}/messages", json={"text": "x"}).status_code == 404
        assert run in [one["id"] for one in admins.get("/v1/runs").json()["data"]]
        assert admins.delete(f"/v1/runs/{run}").json()["state"] == "killed"
        same = {"idempotency-key": "same"}
        runs = [
            http.post("/v1/inferlets/echo/runs", json={"messages": ["end"]}, headers=same).json()["id"]
            for http in (mine, others, mine)
        ]
        assert runs[0] == runs[2] != runs[1]
    engine.uninstall("echo")


def test_programs_are_installed_by_admins(locked: str, keys: Keys, engine: Any) -> None:
    user, boss = keys.create(), keys.create(role="admin")
    body = {"filename": "twice.py", "source": "def main(x: int): return 2 * x\n"}
    with client(locked, user) as http:
        assert http.post("/v1/inferlets", json=body).status_code == 403
    with client(locked, boss) as http:
        made = http.post("/v1/inferlets", json=body)
        assert (made.status_code, made.json()["name"]) == (201, "twice")
        assert http.post("/v1/inferlets/twice/runs", json={"input": {"x": 4}}).json()["result"] == 8
        for wrong in ({**body, "filename": "../x.py"}, {**body, "filename": "x.wasm"}, {"source": ""}):
            assert http.post("/v1/inferlets", json=wrong).status_code == 400
        assert http.delete("/v1/inferlets/twice").json() == {"uninstalled": ["twice@0.0.0"]}
        assert http.delete("/v1/inferlets/twice").status_code == 404


def test_no_key_is_in_the_log(locked: str, keys: Keys, engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    key = keys.create()
    with caplog.at_level("DEBUG"), client(locked, key) as http:
        assert http.post(CHAT, json={**HELLO, "user": "ada"}).status_code == 200
        deadline = time.monotonic() + 5
        while guard.log.name not in {record.name for record in caplog.records}:  # it is told behind the answer
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "'user': 'ada'" in caplog.text
    assert key.split("-", 2)[2] not in caplog.text, "of the rest, the hex is its name"
