"""Programs over HTTP: runs of inferlets with arguments of their own, events that can be taken up again, and messages.

`POST /v1/inferlets/NAME/runs` launches one.  Its events have numbers: a client that has lost its connection goes on at
`GET /v1/runs/ID/events` behind the number in `Last-Event-ID`, as long as the run is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pieray.client.engine import Engine
from pieray.client.process import Event, Process
from pieray.concurrency.off_loop import off_loop
from pieray.errors import ConfigError, PierayError
from pieray.programs.manifest import of_source
from pieray.programs.sources import embedded, embedded_inferlets, of_manifest
from pieray.server.answers import encoded
from pieray.server.bodies import read_json
from pieray.server.guard import caller_of
from pieray.server.keys import Caller, Rates
from pieray.server.metrics import Metrics
from pieray.server.models import main_named
from pieray.server.problems import BadField, HttpProblem, problem_of
from pieray.server.streams import EventStream, kill_soon, unless_gone
from pieray.server.tenants import Tenants
from pieray.server.values import boolean, integer, listed, mapping, number, shown, text

MOST_KEPT = 512
"""Runs that the door knows, ended ones included."""
KEPT_S = 600.0
"""Ended runs are kept so long, if there is room."""
MOST_KEEP_S = 86_400.0
LEAST_KEEP_S = 2.0
"""For whoever has launched a run to begin to read it."""
FIELDS = ("input", "limits", "priority", "deadline_s", "stream", "wait", "keep_s", "messages")


OwnKey: TypeAlias = tuple[str, str, str]
"""Tenant, user, and the idempotency key that they have given."""


@dataclass(slots=True)
class Run:
    """A run and who waits for it."""

    process: Process
    program: str
    caller: Caller
    keep_s: float
    """So long it goes on when nobody reads it."""
    key: OwnKey | None = None
    """Its idempotency key."""
    created: float = field(default_factory=time.time)
    num_readers: int = 0
    left_at: float = 0.0
    """By the loop's clock, when the last reader left."""
    ended_at: float = 0.0

    def is_seen_by(self, caller: Caller) -> bool:
        """By its tenant, and by who administers the server."""
        return caller.is_admin or caller.tenant == self.caller.tenant

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {"id": self.process.id, "object": "run", "program": self.program}
        found |= {"created": int(self.created), "num_events": self.process.num_events}
        if not self.process.is_done:
            return {**found, "state": "running"}
        try:
            return {**found, "state": "done", "result": self.process.result(0)}
        except PierayError as error:
            state = "killed" if error.code == "cancelled" else "failed"
            return {**found, "state": state, **problem_of(error).body}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request for a run."""

    input: dict[str, Any]
    options: dict[str, Any]
    stream: bool
    wait: bool
    keep_s: float
    messages: list[str]


def read_run(body: Mapping[str, Any]) -> Wanted:
    """Raises BadField."""
    for name in body:
        if name not in FIELDS:
            raise BadField(name, f"is not a field of a run; there are: {', '.join(FIELDS)}", code="unknown_field")
    given = {name: value for name, value in body.items() if value is not None}
    options: dict[str, Any] = {"priority": integer("priority", given.get("priority", 0), -100, 100)}
    if "limits" in given:
        limits = mapping("limits", given["limits"])
        options["limits"] = {name: number(f"limits.{name}", value, 0) for name, value in limits.items()}
    if "deadline_s" in given:
        options["deadline_s"] = number("deadline_s", given["deadline_s"], 0, MOST_KEEP_S)
    stream, wait = boolean("stream", given.get("stream", False)), boolean("wait", given.get("wait", True))
    if stream and not wait:
        raise BadField("wait", "is true where stream is: the events are the answer")
    keep_s = number("keep_s", given.get("keep_s", 0.0 if wait else KEPT_S), 0, MOST_KEEP_S)
    messages = [text("messages", one) for one in listed("messages", given.get("messages", []), 1024)]
    return Wanted(mapping("input", given.get("input", {})), options, stream, wait, keep_s, messages)


class Runs:
    """The runs that this door has launched."""

    def __init__(self, tenants: Tenants, rates: Rates, metrics: Metrics) -> None:
        self._tenants = tenants
        self._metrics = metrics
        self._rates = rates
        self._runs: dict[str, Run] = {}
        self._by_key: dict[OwnKey, tuple[bytes, asyncio.Future[Run]]] = {}
        self._watching: asyncio.Task[None] | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/v1/inferlets", self._programs, methods=["GET"]),
            Route("/v1/inferlets", self._install, methods=["POST"]),
            Route("/v1/inferlets/{name}", self._uninstall, methods=["DELETE"]),
            Route("/v1/inferlets/{name}/runs", self._launch, methods=["POST"]),
            Route("/v1/runs", self._list),
            Route("/v1/runs/{id}", self._one, methods=["GET"]),
            Route("/v1/runs/{id}", self._kill, methods=["DELETE"]),
            Route("/v1/runs/{id}/events", self._events),
            Route("/v1/runs/{id}/messages", self._send, methods=["POST"]),
        ]

    # --- programs ------------------------------------------------------------------------------

    async def _programs(self, _: Request) -> Response:
        rows = [
            {"name": name, "version": one.version, "description": one.description, "is_embedded": True}
            for name, one in embedded_inferlets().items()
        ]
        rows += [
            {name: row[name] for name in ("name", "version", "description")} | {"is_embedded": False}
            for row in await off_loop(self._tenants.engine.programs)
        ]
        return _json({"object": "list", "data": rows})

    async def _install(self, request: Request) -> Response:
        """A program of Python source, which declares its name, version and capabilities as a file does."""
        engine = await self._administered(request)
        body = await read_json(request)
        if set(body) != {"filename", "source"}:
            raise HttpProblem(400, f"a program is {{filename, source}}; given {shown(sorted(body))}")
        filename, source = text("filename", body["filename"], 200), text("source", body["source"], 1 << 22)
        if "/" in filename or not filename.endswith(".py"):
            raise BadField("filename", f"is the name of a Python file; given {shown(filename)}")
        program = of_manifest(of_source(source, filename), Path(filename), source=source)
        return _json(await off_loop(engine.install, program), status=201)

    async def _uninstall(self, request: Request) -> Response:
        engine = await self._administered(request)
        return _json({"uninstalled": await off_loop(engine.uninstall, request.path_params["name"])})

    async def _administered(self, request: Request) -> Engine:
        caller = caller_of(request)
        if not caller.is_admin:
            raise HttpProblem(403, "programs are installed with a key of role admin, or `pieray install`")
        return await self._tenants.engine_of(caller)

    # --- runs ----------------------------------------------------------------------------------

    async def _launch(self, request: Request) -> Response:
        name, body = request.path_params["name"], await read_json(request)
        wanted, caller = read_run(body), caller_of(request)
        engine = await self._tenants.engine_of(caller)
        main = await main_named(engine, name)
        try:
            main.check(wanted.input)
        except ConfigError as error:
            raise BadField("input", error.message) from None
        key = request.headers.get("idempotency-key", "")
        run = await unless_gone(request, self._run_for(caller, key, name, body, wanted))
        headers = {"x-pieray-run": run.process.id}
        if wanted.stream:
            return self._streamed(run, 0, headers)
        if not wanted.wait:
            return _json(run.state(), headers, status=202)
        self._come(run)
        try:
            await unless_gone(request, _ended(run.process))
        finally:
            self._leave(run)
        return _whole(run, headers)

    async def _run_for(self, caller: Caller, key: str, name: str, body: Mapping[str, Any], wanted: Wanted) -> Run:
        """A new run; or, of a key that was given before, the run that it has.  Raises HttpProblem 409, 400."""
        if not key:
            return await self._new(caller, name, wanted, None)
        if len(key) > 256:
            raise HttpProblem(400, f"an idempotency key has at most 256 characters; given {len(key)}")
        asked = hashlib.sha256(json.dumps([name, body], sort_keys=True).encode()).digest()
        mine = caller.tenant, caller.user, key
        known = self._by_key.get(mine)
        if known is None:
            known = self._by_key[mine] = asked, asyncio.ensure_future(self._new(caller, name, wanted, mine))
            known[1].add_done_callback(lambda done: self._forget_failed(mine, done))
        if known[0] != asked:
            raise HttpProblem(409, f"the idempotency key {shown(key)} was given for another request", code="conflict")
        return await asyncio.shield(known[1])

    def _forget_failed(self, key: OwnKey, launched: asyncio.Future[Run]) -> None:
        """A launch that failed may be tried again."""
        if launched.cancelled() or launched.exception() is not None:
            self._by_key.pop(key, None)

    async def _new(self, caller: Caller, name: str, wanted: Wanted, key: OwnKey | None) -> Run:
        self._make_room()
        engine = await self._tenants.engine_of(caller)
        process = await engine.alaunch(embedded(name) or name, wanted.input, attached=True, **wanted.options)
        self._metrics.launched(process.name)
        run = self._runs[process.id] = Run(process, name, caller, wanted.keep_s, key, left_at=_now())
        if self._watching is None:
            self._watching = asyncio.ensure_future(self._watch())
        for message in wanted.messages:
            await process.asend(message)
        return run

    async def _list(self, request: Request) -> Response:
        caller = caller_of(request)
        rows = [run.state() for run in self._runs.values() if run.is_seen_by(caller)]
        for row in rows:
            row.pop("result", None)
        return _json({"object": "list", "data": rows})

    async def _one(self, request: Request) -> Response:
        return _json(self._named(request).state())

    async def _kill(self, request: Request) -> Response:
        run = self._named(request)
        await run.process.akill("killed over HTTP")
        await _ended(run.process)
        return _json(run.state())

    async def _send(self, request: Request) -> Response:
        run, body = self._named(request), await read_json(request)
        if set(body) != {"text"}:
            raise HttpProblem(400, f"a message is {{text}}; given {shown(sorted(body))}")
        await run.process.asend(text("text", body["text"], 1 << 22))
        return _json({"id": run.process.id, "object": "run.message"}, status=202)

    async def _events(self, request: Request) -> Response:
        run = self._named(request)
        last = request.headers.get("last-event-id", "")
        if last and not (last.isascii() and last.isdigit() and len(last) < 10):
            raise HttpProblem(400, f"Last-Event-ID is the number of an event; given {last[:100]!r}")
        return self._streamed(run, int(last) + 1 if last else 0, {"x-pieray-run": run.process.id})

    def _named(self, request: Request) -> Run:
        name = request.path_params["id"]
        run = self._runs.get(name)
        if run is None or not run.is_seen_by(caller_of(request)):
            raise HttpProblem(404, f"there is no run {name[:100]!r}, or it is kept no longer", code="not_found")
        return run

    # --- events --------------------------------------------------------------------------------

    def _streamed(self, run: Run, start: int, headers: Mapping[str, str]) -> Response:
        self._come(run)
        return EventStream(_stream(run.process, start), lambda: self._leave(run), headers)

    def _come(self, run: Run) -> None:
        run.num_readers += 1

    def _leave(self, run: Run) -> None:
        run.num_readers -= 1
        run.left_at = _now()
        if not run.num_readers and not run.keep_s and not run.process.is_done:
            kill_soon(run.process)

    async def _watch(self) -> None:
        """End runs that nobody has read for as long as they are kept, and forget those that ended long ago."""
        while self._runs:
            await asyncio.sleep(0.5)
            now = _now()
            for run in list(self._runs.values()):
                if run.process.is_done:
                    if not run.ended_at and run.caller.tokens_per_minute:
                        kill_soon(run.process, partial(self._rates.count_tokens, run.caller))
                    run.ended_at = run.ended_at or now
                    if now - run.ended_at > KEPT_S and not run.num_readers:
                        self._forget(run)
                elif not run.num_readers and now - run.left_at > max(run.keep_s, LEAST_KEEP_S):
                    kill_soon(run.process)
        self._watching = None

    def _make_room(self) -> None:
        """Forget the run that ended first, if there are too many; raises HttpProblem 429 if all of them run."""
        if len(self._runs) < MOST_KEPT:
            return
        ended = [run for run in self._runs.values() if run.process.is_done and not run.num_readers]
        if not ended:
            raise HttpProblem(429, f"at most {MOST_KEPT} runs at one time", code="overloaded", retry_after_s=1.0)
        self._forget(ended[0])

    def _forget(self, run: Run) -> None:
        self._runs.pop(run.process.id, None)
        if run.key is not None:
            self._by_key.pop(run.key, None)


async def _stream(process: Process, start: int) -> AsyncGenerator[bytes, None]:
    """The events from number `start` on, those that have come together in one piece; the last is result or error."""
    parts: list[bytes] = []
    has_failed = False
    try:
        async with aclosing(process.aevents()) as events:
            async for event in events:
                has_failed = event.kind == "error"
                if event.number >= start:
                    parts.append(_event(event))
                if parts and event.number + 1 >= process.num_events:
                    yield b"".join(parts)
                    parts.clear()
    except PierayError as error:
        if not has_failed:  # it was lost, and has told nothing
            yield b"event: error\ndata: " + encoded({"code": error.code, "message": error.message}) + b"\n\n"


def _event(event: Event) -> bytes:
    """id, kind, and its data as JSON: what it sent or logged is a text, all else as the program gave it."""
    data = encoded(event.text) if event.kind in ("text", "log") else event.text.encode()
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.kind.encode(), data)


async def _ended(process: Process) -> None:
    try:
        await process.wait()
    except PierayError:
        return


def _whole(run: Run, headers: Mapping[str, str]) -> Response:
    """The run, with all that it sent; of one that failed, its error has the status."""
    state, status = run.state(), 200
    texts, data = list[str](), list[Any]()
    try:
        for event in run.process.events(0):
            if event.kind == "text":
                texts.append(event.text)
            elif event.kind == "data":
                data.append(json.loads(event.text))
    except PierayError as error:
        status = problem_of(error).status
    return _json({**state, "texts": texts, "data": data}, headers, status=status)


def _json(value: object, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Response:
    return Response(encoded(value), status, headers, "application/json")


def _now() -> float:
    return asyncio.get_running_loop().time()
