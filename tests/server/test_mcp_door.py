"""Inferlets as the tools of an MCP server, asked by the library's own client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from programs import ECHO, program

from pieray.server.keys import Keys

ADD = program("def main(a: int, b: int = 1, how: str | None = None): return a + b\n", "add-numbers")
SAY = program(
    """
from inferlet import session

def main(words: list[str]):
    for word in words:
        session.send(word)
    return {"count": len(words)}
""",
    "say-words",
)
TRIP = program("def main(): raise ValueError('stumbled')\n", "trip")


@pytest.fixture(scope="module")
def tools(engines: Any) -> Iterator[None]:
    engine = engines("socket")
    for one in (ADD, SAY, TRIP, ECHO):
        engine.install(one)
    yield
    for one in (ADD, SAY, TRIP, ECHO):
        engine.uninstall(one.name)


@asynccontextmanager
async def client_of(url: str, key: str = "") -> AsyncIterator[Client]:
    import httpx2

    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


def within(work: Coroutine[Any, Any, Any]) -> Any:
    async def all_of_it() -> Any:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(all_of_it())


def test_installed_inferlets_are_tools_with_schemas(door: str, engine: Any, tools: None) -> None:
    async def ask() -> dict[str, Any]:
        async with client_of(f"{door}/mcp") as client:
            return {tool.name: tool for tool in (await client.list_tools()).tools}

    found = within(ask())
    assert {"add-numbers", "say-words", "trip", "echo"} <= set(found)
    assert "best-of-n" not in found
    assert found["add-numbers"].input_schema == {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "integer"},
            "how": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["a"],
        "additionalProperties": False,
    }
    words = found["say-words"].input_schema["properties"]["words"]
    assert words == {"type": "array", "items": {"type": "string"}}


def test_a_call_is_a_run(door: str, engine: Any, tools: None) -> None:
    async def ask() -> list[Any]:
        async with client_of(f"{door}/mcp") as client:
            return [
                await client.call_tool("add-numbers", {"a": 2, "b": 40}),
                await client.call_tool("say-words", {"words": ["a", "b"]}),
                await client.call_tool("trip", {}),
                await client.call_tool("add-numbers", {"a": "x"}),
                await client.call_tool("nothing", {}),
            ]

    added, spoken, tripped, wrong, missing = within(ask())
    assert (added.content[0].text, added.structured_content, added.is_error) == ("42", {"result": 42}, False)
    assert (spoken.content[0].text, spoken.structured_content) == ("ab", {"result": {"count": 2}})
    assert tripped.is_error
    assert "stumbled" in tripped.content[0].text
    assert "Traceback" not in tripped.content[0].text
    assert wrong.is_error
    assert "argument 'a'" in wrong.content[0].text
    assert missing.is_error
    programs = [row["program"] for row in httpx.get(f"{door}/v1/runs").json()["data"]]
    assert {"add-numbers", "say-words", "trip"} <= set(programs)


def test_a_url_names_its_tools_embedded_ones_too(door: str, engine: Any, tools: None) -> None:
    async def ask() -> tuple[list[str], Any, Any]:
        async with client_of(f"{door}/mcp?tools=text-completion,add-numbers,nothing") as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            said = await client.call_tool("text-completion", {"prompt": "12+7="})
            return names, said, await client.call_tool("trip", {})

    names, said, refused = within(ask())
    assert names == ["text-completion", "add-numbers"]
    assert "19" in said.content[0].text
    assert refused.is_error
    many = ",".join(map(str, range(65)))
    assert httpx.post(f"{door}/mcp?tools={many}", json={}).status_code == 400


def test_a_client_that_leaves_ends_its_call(door: str, engine: Any, tools: None) -> None:
    before = {row["instance_id"] for row in engine.ps()}

    def new() -> list[str]:
        return [row["state"] for row in engine.ps() if row["instance_id"] not in before]

    async def ask() -> None:
        async with client_of(f"{door}/mcp") as client:
            calling = asyncio.ensure_future(client.call_tool("echo", {}))
            while "running" not in await asyncio.to_thread(new):
                await asyncio.sleep(0.05)
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)

    within(ask())
    deadline = time.monotonic() + 15
    while new() != ["killed"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_no_request_is_refused(door: str, engine: Any) -> None:
    assert httpx.get(f"{door}/mcp").status_code == 405
    assert httpx.post(f"{door}/mcp", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    headers = {"accept": "application/json, text/event-stream"}
    assert httpx.post(f"{door}/mcp", json={"no": "message"}, headers=headers).status_code == 400
    assert (
        httpx.post(f"{door}/mcp", content=b"x" * (5 << 20), headers={"content-type": "application/json"}).status_code
        == 413
    )


def test_a_key_is_asked_for_and_says_whose_run_it_is(locked: str, keys: Keys, engine: Any, tools: None) -> None:
    assert httpx.post(f"{locked}/mcp", json={}).status_code == 401

    async def ask() -> Any:
        async with client_of(f"{locked}/mcp", keys.create(tenant="lab")) as client:
            return await client.call_tool("add-numbers", {"a": 1})

    assert within(ask()).structured_content == {"result": 2}
    assert "lab" in [row["tenant"] for row in engine.ps() if row["name"] == "add-numbers"]
