"""`/v1/engine`, and the files of the page that shows it: what there is to see, and for whom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from programs import ECHO

from pieray.client.connecting import connect_door
from pieray.server.keys import Keys
from pieray.server.ui.page_files import FOLDER


@pytest.fixture
def http(door: str, engine: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=door, timeout=30) as client:
        yield client


@pytest.fixture
def echo(engine: Any) -> Iterator[str]:
    engine.install(ECHO)
    yield ECHO.name
    engine.uninstall(ECHO.name)


def as_key(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30)


def test_the_engine_is_told(http: httpx.Client, engine: Any) -> None:
    assert engine.launch("text-completion", {"prompt": "12+7="}).result()["text"] == "19"
    found = http.get("/v1/engine").json()
    assert found["model"] == "pie-tiny"
    assert [one["name"] for one in found["models"]] == ["pie-tiny"]
    assert {row["role"] for row in found["actors"]} >= {"batcher", "resource-manager", "inferlets"}
    pages = found["pages"]
    assert pages["total"] == sum(pages[state] for state in ("free", "leased", "cached", "quarantined"))
    assert found["steps"]["steps"] > 0
    later = http.get("/v1/engine", params={"since": found["at"] + 1000}).json()
    assert later["pages_over_time"] == []
    assert http.get("/v1/engine", params={"since": "x"}).status_code == 400


def test_an_inferlet_is_followed_and_ended_without_being_a_run_of_this_server(
    http: httpx.Client, engine: Any, echo: str
) -> None:
    process = engine.launch(echo)
    process.send("one")
    assert next(iter(process)).text == "ONE"
    with http.stream("GET", f"/v1/engine/inferlets/{process.id}/events") as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == ["id: 0", "event: text", 'data: "ONE"']
        assert not process.is_done
        assert http.delete(f"/v1/engine/inferlets/{process.id}").status_code == 200
        assert "event: error" in list(lines)
    assert process.is_done
    for method, path in (("GET", "/events"), ("DELETE", "")):
        assert http.request(method, f"/v1/engine/inferlets/nothing{path}").status_code == 404


def test_a_tenant_sees_its_own(locked: str, keys: Keys, engine: Any, echo: str) -> None:
    with connect_door(*engine.door()) as other:
        other.tenant = "theirs"
        theirs = other.launch(echo).id
    with as_key(locked, keys.create(tenant="mine")) as mine:
        assert [row for row in mine.get("/v1/engine").json()["inferlets"] if row["tenant"] != "mine"] == []
        assert mine.get(f"/v1/engine/inferlets/{theirs}/events").status_code == 404
        assert mine.delete(f"/v1/engine/inferlets/{theirs}").status_code == 404
    with as_key(locked, keys.create(role="admin")) as admin:
        assert theirs in [row["instance_id"] for row in admin.get("/v1/engine").json()["inferlets"]]
        assert admin.delete(f"/v1/engine/inferlets/{theirs}").status_code == 200


def test_what_a_program_takes_is_told(http: httpx.Client) -> None:
    found = http.get("/v1/inferlets/http-fetch").json()
    assert found["parameters"][:2] == [
        {"name": "url", "type": "str", "is_required": True},
        {"name": "timeout", "type": "float", "is_required": False},
    ]
    assert http.get("/v1/inferlets/completion-c").json()["parameters"] is None
    assert http.get("/v1/inferlets/nothing").status_code == 404


def test_the_page_asks_for_no_key_and_lets_in_nothing_else(locked: str, keys: Keys) -> None:
    assert httpx.get(f"{locked}/ui").headers["location"] == "/ui/"
    answer = httpx.get(f"{locked}/ui/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "trusted-types 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    for path in (
        "/ui/nothing.js",
        "/ui/page_files.py",
        "/ui/../v1/engine",
        "/ui/%2e%2e/page_files.py",
        "/ui/..%2froutes.py",
    ):
        found = httpx.get(locked + path)
        assert found.status_code in (401, 404), path
    assert httpx.post(f"{locked}/ui/").status_code == 401
    assert httpx.get(f"{locked}/v1/engine").status_code == 401


def test_the_page_needs_nothing_from_elsewhere_and_makes_no_html() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}, path.name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), (
            path.name
        )
        assert set(re.findall(r'from "\./([\w.]+)"', text)) <= names
        assert " style=" not in text
