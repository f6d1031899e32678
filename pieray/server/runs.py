"""Programs over HTTP: runs of inferlets with arguments of their own, events that can be taken up again, and messages.

`POST /v1/inferlets/NAME/runs` launches one.  Its events have numbers: a client that has lost its connection goes on at
`GET /v1/runs/ID/events` behind the number in `Last-Event-ID`, as long as the run is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
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
from pieray.errors import Cancelled, ConfigError, PierayError, error_from
from pieray.programs.manifest import of_source
from pieray.programs.sources import embedded, embedded_inferlets, of_manifest
from pieray.server.answers import encoded
from pieray.server.bodies import read_json, worked_out
from pieray.server.guard import caller_of, trace_of
from pieray.server.keys import Caller, Rates
from pieray.server.metrics import Metrics
from pieray.server.models import main_named
from pieray.server.problems import RETRY_S, BadField, HttpProblem, problem_of
from pieray.server.streams import EventStream, kill_soon, unless_gone
from pieray.server.tenants import Tenants
from pieray.server.values import boolean, integer, listed, mapping, number, shown, text

log = logging.getLogger(__name__)

MOST_KEPT = 512
"""Runs of one tenant that the door knows, ended ones included."""
MOST_KEPT_BYTES = 64 << 20
"""Of the events of one tenant's runs that have ended."""
KILL_AGAIN_S = 70.0
"""A run that was told to end, and has not, is told again after so long."""
END_S = 10.0
"""For a run that is killed to end."""
MOST_TOGETHER = 64
"""Events that are sent in one piece."""
KEPT_S = 600.0
"""Ended runs are kept so long, if there is room."""
MOST_KEEP_S = 86_400.0
WATCH_S = 0.5
"""How often runs are looked after."""
LEAST_KEEP_S = 2.0
"""For whoever has launched a run to begin to read it."""
FIELDS = ("input", "limits", "priority", "deadline_s", "stream", "wait", "keep_s", "messages", "trace")


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
    killed_at: float = -math.inf
    """When it was last told to end, since nobody waits for it."""
    num_bytes: int = 0
    """Of its events, when it has ended."""

    def is_seen_by(self, caller: Caller) -> bool:
        """By its tenant, and by who administers the server."""
        return caller.is_admin or caller.tenant == self.caller.tenant

    def state(self) -> dict[str, Any]:
        """All but its result, which may be large."""
        found: dict[str, Any] = {"id": self.process.id, "object": "run", "program": self.program}
        found |= {"created": int(self.created), "num_events": self.process.num_events}
        if not self.process.is_done:
            return {**found, "state": "running"}
        try:
            self.process.ending()
        except PierayError as error:
            state = "killed" if error.code == "cancelled" else "failed"
            return {**found, "state": state, **problem_of(error).body}
        return {**found, "state": "done"}

    def as_json(self, more: Mapping[str, bytes] | None = None) -> bytes:
        """Its state as JSON, with the result as the program gave it, and `more`, which is JSON."""
        state = self.state()
        parts = {name: encoded(value) for name, value in state.items()}
        if state["state"] == "done":
            parts["result"] = _raw(self.process.ending().text)
        rows = (b'"%s":%s' % (name.encode(), value) for name, value in {**parts, **(more or {})}.items())
        return b"{%s}" % b",".join(rows)


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
    options["trace"] = boolean("trace", given.get("trace", False))
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
        self._num_coming: Counter[str] = Counter()
        """Launches under way, by tenant."""
        self._by_key: dict[OwnKey, tuple[bytes, asyncio.Future[Run]]] = {}
        self._watching: asyncio.Task[None] | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/v1/inferlets", self._programs, methods=["GET"]),
            Route("/v1/inferlets", self._install, methods=["POST"]),
            Route("/v1/inferlets/{name}", self._program, methods=["GET"]),
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

    async def _program(self, request: Request) -> Response:
        """One program, with what its main takes; `parameters` is null where that is not known."""
        name = request.path_params["name"]
        main = await main_named(self._tenants.engine, name)
        parameters = None
        if main.parameters is not None:
            parameters = [
                {"name": one.name, "type": str(one), "is_required": one.is_required} for one in main.parameters.values()
            ]
        return _json({"name": name, "object": "inferlet", "parameters": parameters})

    async def _install(self, request: Request) -> Response:
        """A program of Python source, which declares its name, version and capabilities as a file does."""
        engine = await self._administered(request)
        body = await read_json(request)
        if set(body) != {"filename", "source"}:
            raise HttpProblem(400, f"a program is {{filename, source}}; given {shown(sorted(body))}")
        filename, source = text("filename", body["filename"], 200), text("source", body["source"], 1 << 22)
        if "/" in filename or not filename.endswith(".py"):
            raise BadField("filename", f"is the name of a Python file; given {shown(filename)}")
        manifest = await worked_out(request, of_source, source, filename)
        program = of_manifest(manifest, Path(filename), source=source)
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
        wanted, caller = await worked_out(request, read_run, body), caller_of(request)
        wanted.options["trace"] = trace_of(request) or wanted.options["trace"]
        engine = await self._tenants.engine_of(caller)
        main = await main_named(engine, name)
        try:
            await worked_out(request, main.check, wanted.input)
        except ConfigError as error:
            raise BadField("input", error.message) from None
        key = request.headers.get("idempotency-key", "")
        run = await unless_gone(request, self._run_for(caller, key, name, body, wanted))
        headers = {"x-pieray-run": run.process.id}
        if wanted.stream:
            return self._streamed(run, 0, headers)
        if not wanted.wait:
            return _answer(run.as_json(), headers, status=202)
        self._come(run)
        try:
            await unless_gone(request, run.process.until_ended())
        finally:
            self._leave(run)
        return _whole(run, headers)

    async def _run_for(self, caller: Caller, key: str, name: str, body: Mapping[str, Any], wanted: Wanted) -> Run:
        """A new run; or, of a key that was given before, the run that it has.  Raises HttpProblem 409, 400."""
        if not key:
            return await self._new(caller, name, wanted, None)
        if len(key) > 256:
            raise HttpProblem(400, f"an idempotency key has at most 256 characters; given {len(key)}")
        asked = await off_loop(_digest, name, body)
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
            known = self._by_key.get(key)
            if known is not None and known[1] is launched:
                del self._by_key[key]

    async def _new(self, caller: Caller, name: str, wanted: Wanted, key: OwnKey | None) -> Run:
        self._make_room(caller.tenant)
        self._num_coming[caller.tenant] += 1
        try:
            engine = await self._tenants.engine_of(caller)
            process = await engine.alaunch(embedded(name) or name, wanted.input, attached=True, **wanted.options)
            run = self._runs[process.id] = Run(process, name, caller, wanted.keep_s, key, left_at=_now())
        finally:
            self._num_coming[caller.tenant] -= 1
        self._metrics.launched(process.name)
        if self._watching is None:
            self._watching = asyncio.ensure_future(self._watch())
        self._come(run)  # whoever launches it waits for it, until it has its messages
        try:
            for message in wanted.messages:
                await process.asend(message)
        except Cancelled:
            pass  # it has ended, and how is the answer
        except BaseException:
            self._forget(run)
            if not run.ended_at:
                kill_soon(process, self._count(run))
            raise
        finally:
            run.num_readers -= 1
            run.left_at = _now()
        return run

    async def _list(self, request: Request) -> Response:
        caller = caller_of(request)
        return _json({"object": "list", "data": [run.state() for run in self._runs.values() if run.is_seen_by(caller)]})

    async def _one(self, request: Request) -> Response:
        return _answer(self._named(request).as_json())

    async def _kill(self, request: Request) -> Response:
        run = self._named(request)
        await run.process.akill("killed over HTTP")
        try:
            async with asyncio.timeout(END_S):
                await run.process.until_ended()
        except TimeoutError:
            raise HttpProblem(503, f"the run has not ended within {END_S:g} s", retry_after_s=RETRY_S) from None
        return _answer(run.as_json())

    async def _send(self, request: Request) -> Response:
        run, body = self._named(request), await read_json(request)
        if set(body) != {"text"}:
            raise HttpProblem(400, f"a message is {{text}}; given {shown(sorted(body))}")
        try:
            await run.process.asend(text("text", body["text"], 1 << 22))
        except Cancelled as error:
            raise HttpProblem(409, f"the run has ended: {error.message}", code=error.code) from None
        return _json({"id": run.process.id, "object": "run.message"}, status=202)

    async def _events(self, request: Request) -> Response:
        run = self._named(request)
        last = request.headers.get("last-event-id", "")
        if last and not (last.isascii() and last.isdigit() and len(last) < 10):
            raise HttpProblem(400, f"Last-Event-ID is the number of an event; given {last[:100]!r}")
        headers = {"x-pieray-run": run.process.id}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        return self._streamed(run, int(last) + 1 if last else 0, headers)

    def _named(self, request: Request) -> Run:
        name = request.path_params["id"]
        run = self._runs.get(name)
        if run is None or not run.is_seen_by(caller_of(request)):
            raise HttpProblem(404, f"there is no run {name[:100]!r}, or it is kept no longer", code="not_found")
        return run

    # --- events --------------------------------------------------------------------------------

    def _streamed(self, run: Run, start: int, headers: Mapping[str, str]) -> Response:
        self._come(run)
        return EventStream(event_stream(run.process, start), lambda: self._leave(run), headers)

    def _come(self, run: Run) -> None:
        run.num_readers += 1

    def _leave(self, run: Run) -> None:
        run.num_readers -= 1
        run.left_at = _now()
        if not run.num_readers and not run.keep_s and not run.process.is_done:
            self._kill_soon(run)

    async def _watch(self) -> None:
        """Look after the runs as long as there are any."""
        try:
            while self._runs:
                await asyncio.sleep(WATCH_S)
                for run in list(self._runs.values()):
                    try:
                        self._look_after(run)
                    except Exception:
                        log.exception("run %s is not looked after", run.process.id)
                self._bound_bytes()
        finally:
            self._watching = None

    def _look_after(self, run: Run) -> None:
        """End a run that nobody has read for as long as it is kept, and forget one that ended long ago."""
        now = _now()
        if run.process.is_done:
            if not run.ended_at:
                self._note_end(run, now)
            if now - run.ended_at > KEPT_S and not run.num_readers:
                self._forget(run)
        elif (
            not run.num_readers
            and now - run.left_at > max(run.keep_s, LEAST_KEEP_S)
            and now - run.killed_at > KILL_AGAIN_S
        ):
            self._kill_soon(run)

    def _note_end(self, run: Run, now: float) -> None:
        """Once: its tokens are counted, its events will be no more."""
        run.ended_at = now
        run.num_bytes = sum(len(event.text) for event in run.process.seen())
        try:
            run.process.ending()
        except Cancelled:
            pass
        except PierayError as error:  # with the traceback, which clients are not told
            about = run.process.id, run.program, error.code, error.message
            log.warning(
                "run %s of %s: %s: %s", *about, extra=dict(zip(("run", "program", "code"), about, strict=False))
            )
        if (count := self._count(run)) is not None:
            kill_soon(run.process, count)

    def _count(self, run: Run) -> Callable[[int], None] | None:
        """What is told the tokens that it has used; None: nobody counts them."""
        return partial(self._rates.count_tokens, run.caller) if run.caller.tokens_per_minute else None

    def _kill_soon(self, run: Run) -> None:
        """End a run that nobody waits for; whoever comes with its key again gets a new one."""
        run.killed_at = _now()
        self._drop_key(run)
        kill_soon(run.process)

    def _ended_of(self, tenant: str) -> list[Run]:
        """Runs of a tenant that may be forgotten, the first that ended first."""
        found = (run for run in self._runs.values() if run.caller.tenant == tenant)
        ended = [run for run in found if run.process.is_done and not run.num_readers]
        return sorted(ended, key=lambda run: run.ended_at or math.inf)

    def _make_room(self, tenant: str) -> None:
        """Forget the tenant's run that ended first, if it has too many; raises HttpProblem 429 if all of them run."""
        known = sum(run.caller.tenant == tenant for run in self._runs.values())
        if known + self._num_coming[tenant] < MOST_KEPT:
            return
        ended = self._ended_of(tenant)
        if not ended:
            raise HttpProblem(
                429, f"a tenant has at most {MOST_KEPT} runs at one time", code="overloaded", retry_after_s=1.0
            )
        self._forget(ended[0])

    def _bound_bytes(self) -> None:
        """Forget runs of tenants whose ended ones hold too much, the first that ended first; the last one stays."""
        held = Counter[str]()
        for run in self._runs.values():
            held[run.caller.tenant] += run.num_bytes
        for tenant, size in held.items():
            excess = size - MOST_KEPT_BYTES
            for run in self._ended_of(tenant)[:-1] if excess > 0 else ():
                self._forget(run)
                excess -= run.num_bytes
                if excess <= 0:
                    break

    def _forget(self, run: Run) -> None:
        if self._runs.pop(run.process.id, None) is not None and run.process.is_done and not run.ended_at:
            self._note_end(run, _now())
        self._drop_key(run)

    def _drop_key(self, run: Run) -> None:
        """Its idempotency key, if that is still its own."""
        known = self._by_key.get(run.key) if run.key is not None else None
        if known is None or run.key is None:
            return
        launched = known[1]
        if launched.done() and not launched.cancelled() and not launched.exception() and launched.result() is run:
            del self._by_key[run.key]


async def event_stream(process: Process, start: int) -> AsyncGenerator[bytes, None]:
    """The events from number `start` on, those that have come together in one piece; the last is result or error."""
    parts: list[bytes] = []
    has_failed = False
    try:
        async with aclosing(process.aevents()) as events:
            async for event in events:
                has_failed = event.kind == "error"
                if event.number >= start:
                    parts.append(_event(event))
                if parts and (event.number + 1 >= process.num_events or len(parts) >= MOST_TOGETHER):
                    yield b"".join(parts)
                    parts.clear()
    except PierayError as error:
        if not has_failed:  # it was lost, and has told nothing
            yield b"".join([*parts, b"event: error\ndata: %s\n\n" % _told(error)])


def _event(event: Event) -> bytes:
    """id, kind, and its data as JSON: what it sent or logged is a text, all else as the program gave it."""
    if event.kind == "error":
        problem = json.loads(event.text)
        data = _told(error_from(problem["code"], problem["message"]))
    else:
        data = encoded(event.text) if event.kind in ("text", "log") else _raw(event.text)
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.kind.encode(), data)


def _told(error: PierayError) -> bytes:
    """An error as a run's last event has it, less its traceback and log, which are the operator's."""
    told = problem_of(error).body["error"]
    return encoded({"code": error.code, "message": told["message"]})


def _raw(text: str) -> bytes:
    """JSON on one line, as server-sent events are made of lines: a line's end in JSON is white space, never content."""
    return text.replace("\n", " ").replace("\r", " ").encode(errors="backslashreplace")  # as JSON has half surrogates


def _whole(run: Run, headers: Mapping[str, str]) -> Response:
    """The run, with all that it sent; of one that failed, its error has the status."""
    status, events = 200, run.process.seen()
    try:
        run.process.ending()
    except PierayError as error:
        status = problem_of(error).status
    texts = encoded([event.text for event in events if event.kind == "text"])
    data = b"[%s]" % b",".join(_raw(event.text) for event in events if event.kind == "data")
    return _answer(run.as_json({"texts": texts, "data": data}), headers, status=status)


def _digest(name: str, body: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps([name, body], sort_keys=True).encode()).digest()


def _json(value: object, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Response:
    return _answer(encoded(value), headers, status=status)


def _answer(body: bytes, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Response:
    return Response(body, status, headers, "application/json")


def _now() -> float:
    return asyncio.get_running_loop().time()
