"""MCP tools through SDK and handlers: real servers over stdio and streamable HTTP, deaths, limits, errors."""

from __future__ import annotations

import asyncio
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from groups import until
from sdk import SdkBench

import inferlet
from inferlet import mcp
from pieray.config import Config, Limits
from pieray.errors import ConfigError, InvalidRequest, QuotaExceeded
from pieray.host.handlers.mcp import MAX_RUNNING
from pieray.host.services import Services
from pieray.programs.capabilities import Capabilities
from pieray.world.mcp import servers
from pieray.world.mcp.servers import ToolServers, result_of
from pieray.world.mcp.spec import parse_option, parse_spec

SERVER = str(Path(__file__).resolve().parents[2] / "support" / "mcp_calculator.py")
COMMAND = {"command": [sys.executable, SERVER], "env": {"MINE": "yes"}}


class Shared:
    """Services of an actor that outlive its inferlets."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.servers = ToolServers(given)
        self.services = Services(mcp=self.servers)
        self.services.loop.before_close(self.servers.close)

    def bench(self, *allowed: str, **limits: float) -> SdkBench:
        capabilities = Capabilities(mcp=allowed or ("*",))
        return SdkBench(limits=Limits(**limits), capabilities=capabilities, services=self.services)


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    shared = Shared(
        {
            "calc": COMMAND,
            "other": {"command": [sys.executable, "-c", "import sys; sys.exit('no')"]},
            "missing": {"command": ["/no/such/command"]},
            "object": Plain(),
        }
    )
    yield shared
    shared.services.close()


class Plain:
    """Tools without any library."""

    def list_tools(self) -> list[dict[str, Any]]:
        return [{"name": "shout", "description": "louder", "inputSchema": {"type": "object"}}, {"name": "fail"}]

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "fail":
            raise LookupError("nothing there")
        return {"said": arguments["text"].upper()}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_real_server_lists_its_tools_and_calculates(shared: Shared) -> None:
    bench = shared.bench("calc")
    assert mcp.servers() == ["calc"]
    tools = {tool.name: tool for tool in bench.run(mcp.tools("calc"))}
    assert tools["add"].description == "Add two numbers."
    assert tools["add"].input_schema["properties"]["a"]["type"] == "integer"
    assert bench.run(tools["add"].call({"a": 12, "b": 7})) == "19"
    assert bench.run(tools["add"](a=1, b=2)) == "3"
    result = bench.run(mcp.call("calc", "add", a=12, b=7))
    assert (result.is_error, result.text, result.content[0]["type"]) == (False, "19", "text")
    assert result.structured == {"result": 19}


def test_a_server_is_shared_by_the_inferlets_of_an_actor(shared: Shared) -> None:
    first, second = shared.bench(), shared.bench()
    one = int(first.run(mcp.call("calc", "count")).text)
    first.parts.close()
    two = int(second.run(mcp.call("calc", "count")).text)
    assert two == one + 1


def test_a_tool_that_reports_a_failure_is_a_result_and_one_that_is_not_there_an_error(shared: Shared) -> None:
    bench = shared.bench()
    result = bench.run(mcp.call("calc", "divide", a=1, b=0))
    assert result.is_error
    assert "division" in result.text
    with pytest.raises(inferlet.RemoteFailed, match="division"):
        result.raise_for_error()
    assert bench.run(mcp.call("calc", "add", a="no number", b=1)).is_error  # the server checks its arguments
    with pytest.raises(inferlet.NotFound, match="no tool 'subtract'; it has: add, count"):
        bench.run(mcp.call("calc", "subtract", a=1))
    with pytest.raises(inferlet.NotFound, match="no server 'nobody'; there are: calc, missing, object, other"):
        bench.run(mcp.tools("nobody"))


def test_only_what_the_manifest_names_may_be_called(shared: Shared) -> None:
    bench = shared.bench("object")
    assert mcp.servers() == ["object"]
    with pytest.raises(inferlet.Denied, match="does not name the server 'calc'"):
        bench.run(mcp.call("calc", "add", a=1, b=1))
    bench = SdkBench(services=shared.services)
    assert mcp.servers() == []
    with pytest.raises(inferlet.Denied, match="capability"):
        bench.run(mcp.tools("calc"))


def test_an_object_with_two_methods_is_a_server(shared: Shared) -> None:
    bench = shared.bench()
    assert [(t.name, t.input_schema) for t in bench.run(mcp.tools("object"))] == [
        ("shout", {"type": "object"}),
        ("fail", {"type": "object"}),
    ]
    result = bench.run(mcp.call("object", "shout", text="hey"))
    assert (result.structured, result.text) == ({"said": "HEY"}, '{"said": "HEY"}')
    failed = bench.run(mcp.call("object", "fail"))
    assert (failed.is_error, failed.text) == (True, "LookupError: nothing there")
    with pytest.raises(inferlet.NotFound, match="it has: shout, fail"):
        bench.run(mcp.call("object", "whisper"))


def test_a_server_object_of_the_library_runs_in_process() -> None:
    from mcp_calculator import server

    shared = Shared({"inside": server})
    try:
        assert shared.bench().run(mcp.call("inside", "add", a=2, b=2)).text == "4"
        assert shared.bench().run(mcp.call("inside", "pid")).text == str(os.getpid())
    finally:
        shared.services.close()


@pytest.mark.slow
def test_a_server_that_dies_fails_the_call_in_flight_and_is_started_anew(shared: Shared) -> None:
    bench = shared.bench()
    before = int(bench.run(mcp.call("calc", "pid")).text)
    with pytest.raises(inferlet.PeerLost, match="server 'calc' is gone"):
        bench.run(mcp.call("calc", "die"))
    after = int(bench.run(mcp.call("calc", "pid")).text)
    assert after != before
    os.kill(after, signal.SIGKILL)  # now while nobody waits for it
    until(lambda: shared.servers._servers["calc"]._connection.is_over)  # type: ignore[attr-defined]
    assert bench.run(mcp.call("calc", "add", a=1, b=1)).text == "2"


def test_a_server_that_does_not_start_says_so(shared: Shared) -> None:
    bench = shared.bench()
    for name in ("other", "missing", "other"):
        with pytest.raises(inferlet.PeerLost, match=f"server '{name}' does not start"):
            bench.run(mcp.tools(name))


def test_a_server_sees_no_more_of_the_environment_than_it_is_given(shared: Shared, monkeypatch: Any) -> None:
    bench = shared.bench()
    os.environ["PIERAY_TEST_SECRET"] = "secret"
    try:
        values = [
            bench.run(mcp.call("calc", "environment", name=n)).text for n in ("MINE", "PATH", "PIERAY_TEST_SECRET")
        ]
    finally:
        del os.environ["PIERAY_TEST_SECRET"]
    assert values == ["yes", os.environ["PATH"], ""]


def test_limits_on_calls_time_and_size(shared: Shared) -> None:
    bench = shared.bench(mcp_calls=2, mcp_time_s=20)
    bench.run(mcp.call("calc", "add", a=1, b=1))
    bench.run(mcp.tools("calc"))
    with pytest.raises(inferlet.QuotaExceeded, match="mcp_calls: the limit is 2"):
        bench.run(mcp.tools("calc"))
    with pytest.raises(inferlet.DeadlineExceeded, match="mcp_time_s: the limit is 0.2"):
        shared.bench(mcp_time_s=0.2).run(mcp.call("calc", "sleep", seconds=1))
    with pytest.raises(inferlet.QuotaExceeded, match="message_bytes: the limit is 500; the answer of server 'calc'"):
        shared.bench(message_bytes=500).run(mcp.call("calc", "long", size=501))


def test_answers_that_nobody_takes_are_bounded(shared: Shared) -> None:
    bench = shared.bench("object")
    tickets = [bench.handlers.mcp.tools("object") for _ in range(MAX_RUNNING)]
    with pytest.raises(QuotaExceeded, match=f"mcp calls: the limit is {MAX_RUNNING}"):
        bench.handlers.mcp.tools("object")
    bench.wait(tickets[:1], -1)
    bench.handlers.tickets.take_text(tickets[0])
    assert bench.handlers.mcp.tools("object")


@pytest.mark.parametrize("arguments", ["", "[]", "1", "{", '{"a": NaN}', "[" * 100_000])
def test_arguments_are_a_json_object(shared: Shared, arguments: str) -> None:
    with pytest.raises(InvalidRequest, match="a JSON object"):
        shared.bench().handlers.mcp.call("calc", "add", arguments)
    with pytest.raises(inferlet.InvalidRequest, match="JSON"):
        shared.bench().run(mcp.call("calc", "add", a=object()))


def test_calls_run_side_by_side_and_a_cancelled_one_ends(shared: Shared) -> None:
    bench = shared.bench()

    async def both() -> list[Any]:
        slow = asyncio.ensure_future(mcp.call("calc", "sleep", seconds=30))
        await asyncio.sleep(0)
        answers = await asyncio.gather(*(mcp.call("object", "shout", text=str(i)) for i in range(10)))
        slow.cancel()
        await asyncio.wait([slow])
        return answers

    assert [a.structured["said"] for a in bench.run(both())] == [str(i) for i in range(10)]
    until(lambda: not shared.services.loop.tasks)
    ticket = bench.handlers.mcp.call("object", "shout", '{"text": "a"}')
    bench.handlers.tickets.cancel(np.array([ticket], np.uint32))


@pytest.mark.slow
def test_closing_ends_the_servers() -> None:
    shared = Shared({"calc": COMMAND})
    pid = int(shared.bench().run(mcp.call("calc", "pid")).text)
    assert is_alive(pid)
    shared.services.close()
    assert not is_alive(pid)


@pytest.mark.slow
def test_a_server_does_not_outlive_a_process_that_is_killed(tmp_path: Path) -> None:
    stubborn = "import signal, time\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(600)"
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
import asyncio, sys
from pieray.world.mcp.connection import Connection
from pieray.world.mcp.spec import ServerSpec
async def main():
    Connection("x", ServerSpec((sys.executable, "-c", {stubborn!r})))
    await asyncio.sleep(600)
asyncio.run(main())
""",
        ]
    )

    def children() -> list[int]:
        found = Path(f"/proc/{owner.pid}/task/{owner.pid}/children")
        return [int(p) for p in found.read_text().split()] if found.exists() else []

    def is_replaced() -> bool:
        """The child that ties itself to its parent has become the server."""
        return any(b"time.sleep(600)" in Path(f"/proc/{p}/cmdline").read_bytes() for p in children())

    try:
        until(is_replaced, 60)
        (pid,) = children()
        owner.kill()
        owner.wait()
        until(lambda: not is_alive(pid), 20)
    finally:
        owner.kill()


@pytest.fixture(scope="module")
def http_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def serve_http(port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, SERVER, "http", str(port)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    raise AssertionError("the server does not listen")


@pytest.mark.slow
def test_a_server_over_http_also_after_it_was_away(http_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "RESTART_S", 0.0)
    shared = Shared({"web": {"url": f"http://127.0.0.1:{http_port}/mcp"}})
    bench = shared.bench()
    try:
        with pytest.raises(inferlet.PeerLost, match="server 'web' does not start"):
            bench.run(mcp.tools("web"))
        server = serve_http(http_port)
        try:
            assert "add" in [t.name for t in bench.run(mcp.tools("web"))]
            assert bench.run(mcp.call("web", "add", a=12, b=7)).structured == {"result": 19}
            with pytest.raises(inferlet.NotFound, match="no tool 'nothing'"):
                bench.run(mcp.call("web", "nothing"))
        finally:
            server.kill()
            server.wait()
        with pytest.raises(inferlet.PeerLost):
            bench.run(mcp.call("web", "add", a=1, b=1))
        server = serve_http(http_port)
        try:
            assert bench.run(mcp.call("web", "add", a=1, b=1)).text == "2"
        finally:
            server.kill()
            server.wait()
    finally:
        shared.services.close()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "either a command or a url"),
        ({"command": ["a"], "url": "http://a"}, "either"),
        ("a", "a mapping"),
        ({"url": "ftp://a"}, "begins with http"),
        ({"command": [1]}, "a list of words"),
        ({"cmd": "a"}, "unknown cmd"),
        ({"command": ["a"], "env": {"A": 1}}, "env maps names to texts"),
        ({"url": "http://a", "headers": ["A"]}, "headers maps names to texts"),
        ({"url": "http://a", "headers": {"A": "x\r\ny"}}, "no line of a header: 'A'"),
        ({"command": ["a"], "headers": {"A": "b"}}, "headers go with a url"),
    ],
)
def test_a_spec_that_is_none_is_an_error(given: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_spec("x", given)
    with pytest.raises(ConfigError):
        Services.of(Config(mcp={"x": given}))


def test_what_a_command_line_says() -> None:
    assert parse_option("calc=python -m 'my calc' --x=1") == ("calc", {"command": ["python", "-m", "my calc", "--x=1"]})
    assert parse_option("web=https://a/mcp") == ("web", {"url": "https://a/mcp"})
    for bad in ("calc", "calc=", "=x", "a b=x", "calc='"):
        with pytest.raises(ConfigError):
            parse_option(bad)


def test_results_of_any_kind_have_one_form() -> None:
    assert result_of("a") == {"is_error": False, "content": [{"type": "text", "text": "a"}], "structured": None}
    assert result_of([1])["structured"] == [1]
    given = {"content": [{"type": "text", "text": "a"}], "isError": True, "structuredContent": {"b": 1}}
    assert result_of(given) == {"is_error": True, "content": given["content"], "structured": {"b": 1}}


def test_a_tool_that_breaks_its_promises_keeps_its_server_and_the_calls_of_others() -> None:
    script = Path(__file__).parents[2] / "support" / "mcp_careless.py"
    shared = Shared({"careless": {"command": [sys.executable, str(script)]}})
    bench = shared.bench("careless")

    async def main() -> list[str]:
        slow = asyncio.create_task(mcp.call("careless", "slow"))
        pid = (await mcp.call("careless", "pid")).text
        for name in ("wrong", "plain"):
            with pytest.raises(inferlet.RemoteFailed, match="structured content"):
                await mcp.call("careless", name)
        assert (await mcp.call("careless", "noise")).text == "quiet"
        assert (await mcp.call("careless", "right")).structured == {"n": 3}
        return [pid, (await mcp.call("careless", "pid")).text, (await slow).text]

    try:
        before, after, said = bench.run(main())
        assert (before, said) == (after, "done")
    finally:
        shared.services.close()


@pytest.mark.slow
def test_headers_reach_a_server_over_http_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    secret = "Bearer s3cr3t"
    given = {"url": f"http://127.0.0.1:{server.server_port}/mcp", "headers": {"Authorization": secret}}
    shared = Shared({"web": given})
    caplog.set_level(0)
    try:
        with pytest.raises(inferlet.Error) as raised:
            shared.bench().run(mcp.tools("web"))
        assert seen
        assert set(seen) == {secret}
        assert "s3cr3t" not in f"{raised.value} {caplog.text} {parse_spec('web', given)!r}"
    finally:
        shared.services.close()
        server.shutdown()
