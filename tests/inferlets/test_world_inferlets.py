"""Inferlets that reach beyond the engine, and what they stand on, on a running engine with real Python guests."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from engines import assert_pages_return
from programs import program
from web import Web, serve_web

import pieray
from pieray.errors import Cancelled, Denied, InvalidRequest, NotFound, PeerLost, QuotaExceeded
from pieray.programs.sources import inferlets_folder

CALCULATOR = str(Path(__file__).resolve().parents[1] / "support" / "mcp_calculator.py")
EXAMPLE = [sys.executable, str(inferlets_folder() / "mcp-tools" / "calculator.py")]
PEOPLE = ["In Vari lives Mavi, aged 89.", "In Kemi lives Bane, aged 12."]


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve_web() as found:
        yield found


@pytest.fixture(scope="module")
def world_engine(ray_cluster: None, web: Web) -> Iterator[Any]:
    """An engine that may ask the one local server, and has an MCP server of its own."""
    found = pieray.start(
        namespace="tests-world",
        http_hosts=[f"127.0.0.1:{web.port}", f"*.example:{web.port}"],
        http_private=True,
        mcp={"operators": {"command": [sys.executable, CALCULATOR]}},
    )
    yield found
    assert_pages_return(found)
    result = found.launch(CALL, server="operators", tool="pid", capabilities={"mcp": ["*"]}).result(timeout=60)
    found.close()
    await_end(int(result[2]))


def await_end(pid: int) -> None:
    """A server that pieray has started does not live on."""
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


FETCH = program(
    """
from inferlet import http

async def main(url, headers=None):
    answer = await http.get(url, headers=headers)
    return [answer.status, answer.text]
"""
)

CALL = program(
    """
from inferlet import mcp

async def main(server, tool, **arguments):
    result = await mcp.call(server, tool, **arguments)
    return [mcp.servers(), result.is_error, result.text]
"""
)

FILES = program(
    """
from inferlet import scratch, session

async def main(count):
    for _ in range(count):
        path = await session.receive_file()
        data = scratch.read(path)
        scratch.write("out/" + path, data[::-1])
        session.send_file("out/" + path)
        session.emit("got", {"path": path, "size": len(data)})
    return scratch.names()
"""
)


def test_http_fetch_extracts_the_first_line_of_a_page(world_engine: Any, web: Web) -> None:
    web.pages["people"] = "\n".join(["", *PEOPLE]).encode()
    result = world_engine.launch("http-fetch", url=web.url("/redirect?to=/people")).result(timeout=60)
    assert (result["status"], result["url"], result["line"]) == (200, web.url("/people"), PEOPLE[0])
    assert result["fields"] == {"name": "Mavi", "age": 89, "city": "Vari"}
    with pytest.raises(Exception, match="answered with status 404"):
        world_engine.launch("http-fetch", url=web.url("/none")).result(timeout=60)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://2130706433:{port}/",
        "http://a.example@127.0.0.1:{port}/",
        "http://[::1]:{port}/",
        "http://169.254.169.254/",
        "http://a.example\\@127.0.0.1:{port}/",
        "http://localhost:{port}/",
    ],
)
def test_a_guest_goes_nowhere_but_where_it_may(world_engine: Any, web: Web, url: str) -> None:
    num_asked = len(web.asked)
    with pytest.raises(Denied):
        world_engine.launch(FETCH, url=url.format(port=web.port), capabilities={"http": ["*:*"]}).result(timeout=60)
    assert len(web.asked) == num_asked


def test_an_engine_that_allows_nothing_and_a_manifest_that_declares_nothing(
    engine: Any, world_engine: Any, web: Web
) -> None:
    with pytest.raises(Denied, match="engine's http_hosts"):
        engine.launch(FETCH, url=web.url("/page"), capabilities={"http": ["*:*"]}).result(timeout=60)
    with pytest.raises(Denied, match="capability"):
        world_engine.launch(FETCH, url=web.url("/page")).result(timeout=60)
    with pytest.raises(InvalidRequest, match="written by the host alone"):
        world_engine.launch(
            FETCH, url=web.url("/page"), headers={"Host": "evil"}, capabilities={"http": ["*:*"]}
        ).result(timeout=60)
    assert world_engine.launch(FETCH, url=web.url("/page"), capabilities={"http": [f"127.0.0.1:{web.port}"]}).result(
        timeout=60
    ) == [200, "red blue green\nsecond lïne\n"]


def test_mcp_tools_answers_with_the_clients_calculator(world_engine: Any) -> None:
    process = world_engine.launch("mcp-tools", question="What is 12 plus 7?", mcp={"calc": {"command": EXAMPLE}})
    result = process.result(timeout=60)
    assert result["answer"] == "19"
    assert [step["observation"] for step in result["steps"]] == ["19"]
    told = [json.loads(event.text) for event in process.events() if event.kind == "data"]
    assert told == [{"name": "tools", "value": {"calculate": "Calculate with whole numbers and + - *."}}]


def test_the_operators_server_runs_in_the_actor_and_is_shared(world_engine: Any) -> None:
    def call(tool: str, **arguments: Any) -> Any:
        return world_engine.launch(
            CALL, server="operators", tool=tool, capabilities={"mcp": ["operators"]}, **arguments
        ).result(timeout=60)

    assert call("add", a=12, b=7) == [["operators"], False, "19"]
    pids = [int(call("pid")[2]) for _ in range(2)]
    assert pids[0] == pids[1]
    actors = [a["pid"] for a in world_engine.status()["actors"] if a["role"] == "inferlets"]
    assert psutil.Process(pids[0]).ppid() in actors
    with pytest.raises(NotFound, match="no tool 'nothing'"):
        call("nothing")
    with pytest.raises(Denied, match="capability"):
        world_engine.launch(CALL, server="operators", tool="add").result(timeout=60)


class Shelf:
    """A client's tools without any library."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()

    def list_tools(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "description": name, "input_schema": {"type": "object"}} for name in ("read", "hold", "fail")
        ]

    def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "hold":
            self.entered.set()
            self.leave.wait(30)
        if name == "fail":
            raise LookupError("no such book")
        return f"{name} {arguments.get('title')} here in {os.getpid()}"


def test_a_clients_python_object_answers_in_the_client(world_engine: Any) -> None:
    def call(tool: str, **arguments: Any) -> Any:
        return world_engine.launch(CALL, server="shelf", tool=tool, mcp={"shelf": Shelf()}, **arguments).result(
            timeout=60
        )

    assert call("read", title="Emma") == [["shelf"], False, f"read Emma here in {os.getpid()}"]
    assert call("fail")[1:] == [True, "LookupError: no such book"]
    with pytest.raises(NotFound, match="no tool 'burn'"):
        call("burn")


def test_servers_that_a_client_started_end_with_the_inferlet(world_engine: Any) -> None:
    process = world_engine.launch(
        CALL, server="mine", tool="pid", mcp={"mine": {"command": [sys.executable, CALCULATOR]}}
    )
    await_end(int(process.result(timeout=60)[2]))


def test_a_client_that_goes_away_is_peer_lost_to_its_inferlet(world_engine: Any) -> None:
    shelf = Shelf()
    client = pieray.connect("auto", "tests-world")
    process = client.launch(CALL, server="shelf", tool="hold", mcp={"shelf": shelf})
    assert shelf.entered.wait(30)
    client.close()
    watching = world_engine.attach(process.id)
    with pytest.raises(PeerLost, match="client that brought this server is gone"):
        watching.result(timeout=30)
    shelf.leave.set()


def test_a_call_that_takes_too_long_is_a_deadline(world_engine: Any) -> None:
    shelf = Shelf()
    process = world_engine.launch(CALL, server="shelf", tool="hold", mcp={"shelf": shelf}, limits={"mcp_time_s": 0.5})
    with pytest.raises(Exception, match="mcp_time_s: the limit is 0.5"):
        process.result(timeout=30)
    shelf.leave.set()


def test_files_go_both_ways(world_engine: Any, tmp_path: Path) -> None:
    big = os.urandom(3 << 20)
    (tmp_path / "b.bin").write_bytes(b"from disk")
    process = world_engine.launch(FILES, count=4)
    process.send_file("a.bin", big)
    process.send_file("a.bin", b"")
    process.send_file("sub/b.bin", tmp_path / "b.bin")
    with pytest.raises(InvalidRequest, match="a path"):
        process.send_file("../evil", b"x")
    with pytest.raises(QuotaExceeded, match="scratch_bytes"):
        process.send_file("huge", bytes(65 << 20))
    process.send_file("last", b"abc")
    assert process.result(timeout=60) == sorted(
        [p + n for n in ("in/a-2.bin", "in/a.bin", "in/last", "in/sub/b.bin") for p in ("", "out/")]
    )
    assert [(f.name, f.data) for f in process.files()] == [
        ("out/in/a.bin", big[::-1]),
        ("out/in/a-2.bin", b""),
        ("out/in/sub/b.bin", b"ksid morf"),
        ("out/in/last", b"cba"),
    ]
    kinds = [event.kind for event in process.events()]
    assert kinds.count("data") == 4
    late = world_engine.attach(process.id)
    assert [f.data for f in late.files()] == [f.data for f in process.files()]
    with pytest.raises(Cancelled):
        process.send_file("late", b"x")


def test_file_summary_receives_tells_its_progress_and_sends_back(world_engine: Any) -> None:
    process = world_engine.launch("file-summary")
    process.send_file("people.txt", "\n".join(PEOPLE).encode())
    assert process.result(timeout=60) == {"file": "people.jsonl", "num_lines": 2, "num_failed": 0}
    (file,) = process.files()
    assert [json.loads(line)["fields"] for line in file.data.splitlines()] == [
        {"name": "Mavi", "age": 89, "city": "Vari"},
        {"name": "Bane", "age": 12, "city": "Kemi"},
    ]
    told = [json.loads(event.text)["value"] for event in process.events() if event.kind == "data"]
    assert told == [{"done": 1, "of": 2}, {"done": 2, "of": 2}]
