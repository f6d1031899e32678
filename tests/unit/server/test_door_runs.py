"""Runs of the door over an engine that is none: what is kept, for whom, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse

from pieray.client import process as process_module
from pieray.client.process import Event, Process
from pieray.errors import Cancelled, PeerLost
from pieray.server import meter as meter_module
from pieray.server.guard import Guard
from pieray.server.keys import ANYBODY, Caller, Rates
from pieray.server.meter import Meter
from pieray.server.metrics import Metrics
from pieray.server.problems import HttpProblem
from pieray.server.runs import kept, routes
from pieray.server.runs.events import as_server_sent, event_stream
from pieray.server.runs.kept import Run, Runs
from pieray.server.runs.routes import RunRoutes
from pieray.server.runs.wanted import Wanted
from pieray.server.streams import kill_soon

RUN = "/v1/inferlets/text-completion/runs"
BODY = {"input": {"prompt": "a"}}


class Link:
    """To the actor of one process, which does as it is told to."""

    def __init__(self) -> None:
        self.process: Process
        self.killed = threading.Semaphore(0)
        self.num_kills = 0
        self.sent: list[str] = []
        self.fails_send: Exception | None = None
        self.fails_kill: Exception | None = None
        self.ends = True

    def send_text(self, _id: str, text: str, _timeout: float | None) -> None:
        if self.fails_send is not None:
            raise self.fails_send
        self.sent.append(text)

    def send_file(self, *_: Any) -> None: ...

    def kill(self, _id: str, reason: str, _timeout: float | None) -> None:
        self.num_kills += 1
        self.killed.release()
        if self.fails_kill is not None:
            raise self.fails_kill
        if self.ends:
            end(self.process, "error", json.dumps({"code": "cancelled", "message": reason}))

    def usage(self, _id: str, _timeout: float | None) -> dict[str, int]:
        return {"tokens_computed": 3, "tokens_found": 4, "pages_swapped": 0}


def end(process: Process, kind: str = "result", text: str = "1") -> None:
    process.add([Event(kind, text, process.num_events)])


class FakeEngine:
    """Launches processes that run until they are told to end; `on_launch` may do something with each."""

    tenant = user = "local"

    def __init__(self) -> None:
        self.launched: list[Process] = []
        self.links: list[Link] = []
        self.on_launch: Callable[[Link], None] = lambda _: None
        self.gate: asyncio.Event | None = None
        self.children: list[dict[str, Any]] = []

    def ps(self) -> list[dict[str, Any]]:
        rows = [
            {
                "instance_id": one.id,
                "parent": "",
                "state": "done" if one.is_done else "running",
                "tokens_computed": 3,
                "tokens_found": 4,
            }
            for one in self.launched
        ]
        return rows + self.children

    async def alaunch(self, *_: Any, **__: Any) -> Process:
        if self.gate is not None:
            await self.gate.wait()
        link: Any = Link()
        link.process = Process(f"p{len(self.launched)}", "demo", link)
        self.launched.append(link.process)
        self.links.append(link)
        self.on_launch(link)
        return link.process


class Handles:
    """The same engine for all tenants."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine

    async def engine_of(self, _: Caller) -> FakeEngine:
        return self.engine


class Scene:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        handles: Any = Handles(self.engine)
        self.rates = Rates()
        self.runs = Runs(handles, Meter(handles, self.rates), Metrics("m"))
        handlers: Any = {HttpProblem: lambda _, error: JSONResponse(error.body, error.status)}
        app = Guard().around(Starlette(routes=RunRoutes(self.runs, handles).routes(), exception_handlers=handlers))
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")

    async def launch(self, caller: Caller = ANYBODY, *messages: str, key: Any = None, keep_s: float = 60.0) -> Run:
        wanted = Wanted({}, {}, False, False, keep_s, list(messages))
        return await self.runs.new(caller, "text-completion", wanted, key)


def within(test: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        scene = Scene()
        async with asyncio.timeout(10):
            await test(scene)
        for process in scene.engine.launched:
            end(process)
        if (watching := scene.runs._watching) is not None:
            watching.cancel()
        await scene.http.aclose()

    asyncio.run(all_of_it())


def test_results_are_passed_on_as_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing parses them on the event loop: a list of large ones would stop the server."""

    async def test(scene: Scene) -> None:
        scene.engine.on_launch = lambda link: end(link.process, "result", '{"a":\n1}')
        whole = await scene.http.post(RUN, json=BODY)
        (run,) = scene.runs._runs
        one, rows = await scene.http.get(f"/v1/runs/{run}"), await scene.http.get("/v1/runs")
        later = await scene.http.post(RUN, json={**BODY, "wait": False})
        assert [whole.json()["result"], one.json()["result"], later.json()["result"]] == [{"a": 1}] * 3
        assert (whole.json()["texts"], whole.json()["data"], whole.json()["state"]) == ([], [], "done")
        (row,) = rows.json()["data"]
        assert (row["state"], "result" in row) == ("done", False)

    class NoJson:
        def loads(self, _: Any) -> Any:
            raise AssertionError("parsed")

    monkeypatch.setattr(process_module, "json", NoJson())
    within(test)


def test_a_tenant_has_its_own_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_KEPT", 2)
    lab, other = Caller("a", "lab"), Caller("b", "other")

    async def test(scene: Scene) -> None:
        theirs = await scene.launch(other)
        end(theirs.process)
        first, second = await scene.launch(lab), await scene.launch(lab)
        with pytest.raises(HttpProblem) as full:
            await scene.launch(lab)
        assert full.value.status == 429
        for run, at in ((second, 1.0), (first, 2.0)):  # not in the order in which they were launched
            end(run.process)
            run.ended_at = at
        await scene.launch(lab)
        kept = [run.process.id for run in scene.runs._runs.values()]
        assert kept[:2] == [theirs.process.id, first.process.id]
        assert second.process.id not in kept

    within(test)


def test_launches_at_one_time_share_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_KEPT", 2)

    async def test(scene: Scene) -> None:
        scene.engine.gate = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, scene.engine.gate.set)
        found = await asyncio.gather(*(scene.launch() for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(one, Run) for one in found) == 2
        assert len(scene.engine.launched) == 2

    within(test)


def test_ended_runs_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_KEPT_BYTES", 250)

    async def test(scene: Scene) -> None:
        made = [await scene.launch() for _ in range(4)]
        for at, run in enumerate(made):
            end(run.process, "result", '"' + "x" * 98 + '"')
            scene.runs._note_end(run, 1.0 + at)
        scene.runs._bound_bytes()
        assert list(scene.runs._runs.values()) == made[2:]

    within(test)


def test_a_key_whose_run_was_left_launches_again() -> None:
    async def test(scene: Scene) -> None:
        wanted, body = Wanted({}, {}, True, True, 0.0, []), dict(BODY)
        run = await scene.runs.run_for(ANYBODY, "k", "text-completion", body, wanted)
        scene.runs.come(run)
        scene.runs.leave(run)
        again = await scene.runs.run_for(ANYBODY, "k", "text-completion", body, wanted)
        assert again is not run
        end(run.process)
        scene.runs._forget(run)  # the key is another's now
        assert await scene.runs.run_for(ANYBODY, "k", "text-completion", body, wanted) is again

    within(test)


def test_a_run_that_ends_before_its_messages_is_answered_with_its_end() -> None:
    def ends_at_once(link: Link) -> None:
        end(link.process, "result", "7")
        link.fails_send = Cancelled("it has ended")

    async def test(scene: Scene) -> None:
        scene.engine.on_launch = ends_at_once
        answer = await scene.http.post(RUN, json={**BODY, "messages": ["a"]})
        assert (answer.status_code, answer.json()["result"]) == (200, 7)

    within(test)


def test_a_launch_that_fails_over_its_messages_leaves_nothing() -> None:
    def breaks(link: Link) -> None:
        link.fails_send = PeerLost("gone")

    async def test(scene: Scene) -> None:
        scene.engine.on_launch = breaks
        with pytest.raises(PeerLost):
            await scene.launch(ANYBODY, "a")
        assert scene.runs._runs == {}
        assert await asyncio.to_thread(scene.engine.links[0].killed.acquire, timeout=5)

    within(test)


def test_whoever_launches_is_a_reader_until_the_messages_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LEAST_KEEP_S", 0.0)
    seen: list[int] = []

    async def test(scene: Scene) -> None:
        def look(link: Link) -> None:
            def send(*_: Any) -> None:
                (run,) = scene.runs._runs.values()
                seen.append(run.num_readers)
                time.sleep(0.05)

            link.send_text = send  # type: ignore[assignment, method-assign]

        scene.engine.on_launch = look
        launching = asyncio.ensure_future(scene.launch(ANYBODY, "a", "b", keep_s=0.0))
        await asyncio.sleep(0.03)
        (run,) = scene.runs._runs.values()
        scene.runs._look_after(run)
        assert await launching is run
        assert (seen, scene.engine.links[0].num_kills, run.num_readers) == ([1, 1], 0, 0)

    within(test)


def test_one_run_that_cannot_be_looked_after_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "WATCH_S", 0.01)

    async def test(scene: Scene) -> None:
        broken, fine = await scene.launch(), await scene.launch()
        end(broken.process)
        end(fine.process)
        monkeypatch.setattr(broken.process, "seen", lambda: 1 / 0)
        while not fine.num_bytes:
            await asyncio.sleep(0.01)
        assert scene.runs._watching is not None
        assert not scene.runs._watching.done()

    within(test)


def test_an_event_is_one_line() -> None:
    found = as_server_sent(Event("data", '{\r\n "name": "a", "value": 1}\n', 3))
    assert found.startswith(b"id: 3\nevent: data\ndata: {")
    assert (found.count(b"\n"), found.count(b"\r")) == (4, 0)
    assert json.loads(found.split(b"data: ")[-1]) == {"name": "a", "value": 1}
    assert b"\\udc80" in as_server_sent(Event("data", '"\udc80"', 0))


def test_an_error_event_has_no_traceback() -> None:
    text = "ValueError: no\nTraceback: /srv/secret.py\nlast logs"
    found = as_server_sent(Event("error", json.dumps({"code": "guest-failed", "message": text}), 0))
    told = json.loads(found.split(b"data: ")[-1])
    assert told["code"] == "guest-failed"
    assert "ValueError: no" in told["message"]
    assert "secret" not in told["message"]


def test_a_head_reads_no_events() -> None:
    async def test(scene: Scene) -> None:
        run = await scene.launch()
        answer = await scene.http.head(f"/v1/runs/{run.process.id}/events")  # the run goes on: a reader would wait
        assert (answer.status_code, answer.headers["x-pieray-run"]) == (200, run.process.id)
        assert run.num_readers == 0

    within(test)


def test_a_message_to_what_has_ended_is_a_conflict() -> None:
    async def test(scene: Scene) -> None:
        run = await scene.launch()
        end(run.process)
        scene.engine.links[0].fails_send = Cancelled("it has ended")
        answer = await scene.http.post(f"/v1/runs/{run.process.id}/messages", json={"text": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "cancelled")

    within(test)


def test_a_run_that_does_not_end_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "END_S", 0.05)

    async def test(scene: Scene) -> None:
        run = await scene.launch()
        scene.engine.links[0].ends = False
        answer = await scene.http.delete(f"/v1/runs/{run.process.id}")
        assert answer.status_code == 503

    within(test)


def test_a_kill_that_fails_is_tried_again() -> None:
    link: Any = Link()
    link.process, link.fails_kill = Process("p", "demo", link), PeerLost("gone")
    kill_soon(link.process)
    for _ in range(2):
        assert link.killed.acquire(timeout=5)


def test_tokens_are_counted_while_a_run_goes_on_with_those_of_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module, "LOOK_S", 0.01)
    lab = Caller("k", "lab", tokens_per_minute=100)

    def child(number: int, parent: str, state: str, tokens: int) -> dict[str, Any]:
        return {
            "instance_id": f"c{number}",
            "parent": parent,
            "state": state,
            "tokens_computed": tokens,
            "tokens_found": 0,
        }

    async def test(scene: Scene) -> None:
        assert scene.rates.admit(lab, 0.0) == (0.0, "")
        bucket = scene.rates._tokens[lab]

        async def until_left(tokens: float) -> None:
            while bucket._level != tokens:
                await asyncio.sleep(0.01)

        run = await scene.launch(lab)
        await until_left(93.0)  # while it runs
        scene.engine.children = [child(0, run.process.id, "running", 10), child(1, "c0", "done", 5)]
        await until_left(78.0)
        end(run.process)
        scene.runs._forget(run)
        scene.engine.children[0] |= {"tokens_computed": 20}  # it was detached
        await until_left(68.0)
        scene.engine.children[0] |= {"state": "done"}
        while scene.runs._meter._looking is not None:
            await asyncio.sleep(0.01)
        assert bucket._level == 68.0

    within(test)


def test_a_key_has_a_highest_priority() -> None:
    async def test(scene: Scene) -> None:
        wanted = Wanted({}, {"priority": 3}, False, False, 60.0, [])
        with pytest.raises(HttpProblem, match="highest of this key is 2; given 3") as refused:
            await scene.runs.new(Caller("k", "lab", max_priority=2), "text-completion", wanted)
        assert (refused.value.status, scene.engine.launched) == (403, [])
        await scene.runs.new(Caller("k", "lab", max_priority=3), "text-completion", wanted)

    within(test)


def test_a_reader_who_is_behind_gets_pieces() -> None:
    link: Any = Link()
    process = Process("p", "demo", link)
    process.add([Event("text", str(n), n) for n in range(1000)])
    end(process)

    async def pieces() -> list[bytes]:
        return [piece async for piece in event_stream(process, 0)]

    found = asyncio.run(pieces())
    assert max(piece.count(b"\n\n") for piece in found) <= 64
    assert b"".join(found).count(b"\n\n") == 1001
