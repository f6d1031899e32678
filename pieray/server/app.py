"""The routes, as an ASGI application that any server can host.

It is a client of an engine, through its sockets, and never waits for it on the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import pieray
from pieray.client.engine import Engine
from pieray.client.process import Event, Process
from pieray.concurrency.off_loop import off_loop
from pieray.errors import PierayError
from pieray.programs.sources import ProgramSource, embedded
from pieray.server.bodies import read_json, worked_out
from pieray.server.guard import Guard, caller_of, check_priority, trace_of
from pieray.server.json_texts import encoded
from pieray.server.keys import Caller
from pieray.server.meter import Meter
from pieray.server.metrics import Clock, Metrics
from pieray.server.models import main_named, models_of, read_for_program
from pieray.server.openai import answers
from pieray.server.openai.answers import Answer, ChatAnswer, CompletionAnswer
from pieray.server.openai.fields import Asked
from pieray.server.openai.requests import read_chat, read_completion, read_embeddings
from pieray.server.openai.response_answer import ResponseAnswer
from pieray.server.openai.response_fields import read_response
from pieray.server.problems import HttpProblem, problem_of
from pieray.server.runs.files import FileRoutes
from pieray.server.runs.kept import Runs
from pieray.server.runs.programs import ProgramRoutes
from pieray.server.runs.routes import RunRoutes
from pieray.server.runs.sockets import RunSockets
from pieray.server.streams import EventStream, kill_soon, unless_gone
from pieray.server.tenants import Tenants
from pieray.server.tools import ToolRoutes
from pieray.server.ui.routes import EngineRoutes
from pieray.server.values import text

if TYPE_CHECKING:
    from pieray.server.telemetry import Telemetry

log = logging.getLogger(__name__)

MOST_TOGETHER = 64
"""Pieces of a stream that are sent as one: a reader who is behind gets what there is in steps."""
GENERATE, EMBED = "openai-generate", "openai-embeddings"


@dataclass(frozen=True, slots=True)
class Kind:
    """A route that generates."""

    read: Callable[[Mapping[str, Any]], Asked]
    answer: Callable[[Asked, str, int], Answer | ResponseAnswer]
    """From what is asked, the model's name and the Unix time."""
    route: str
    """How a request to an inferlet is read: of `models.ROUTES`."""


def _answer_of(kind: type[Answer], prefix: str) -> Callable[[Asked, str, int], Answer]:
    return lambda asked, model, now: kind(
        f"{prefix}-{asked.door.get('request_id') or uuid.uuid4().hex}",
        model,
        now,
        as_ids=asked.door.get("return_tokens_as_token_ids", False),
        include_usage=asked.door.get("include_usage", False),
    )


def _response_of(asked: Asked, model: str, now: int) -> ResponseAnswer:
    number = asked.door.get("request_id") or uuid.uuid4().hex
    return ResponseAnswer(f"resp_{number}", model, now, told=asked.door["told"])


CHAT = Kind(read_chat, _answer_of(ChatAnswer, "chatcmpl"), "chat")
COMPLETION = Kind(read_completion, _answer_of(CompletionAnswer, "cmpl"), "completion")
RESPONSE = Kind(read_response, _response_of, "response")


class Door:
    """Answers requests from an engine.

    `model`: the name of the default model, `others`: those of what else the engine serves.  `generate`, `embed`: the
    inferlets that serve them, embedded or installed.
    `telemetry`: where requests are traced to.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        model: str,
        others: Sequence[str] = (),
        generate: str = GENERATE,
        embed: str = EMBED,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.tenants = Tenants(engine)
        self._meter: Meter | None = None
        self._engine_routes: EngineRoutes | None = None
        self.metrics = Metrics(model)
        self.model = model
        self._served = {model: "", **{name: name for name in others}}
        """What the engine calls them; "" is the default one."""
        self._generate = generate
        self._embed = embed
        self._began = int(time.time())
        self._telemetry = telemetry
        self._tools: ToolRoutes | None = None

    def app(self, guard: Guard) -> ASGIApp:
        """The routes, behind `guard`."""
        meter = self._meter = Meter(self.tenants, guard.rates)
        guard.on_answer = self.metrics.answered
        self._engine_routes = EngineRoutes(self.tenants, self.model, asks_for_keys=guard.keys is not None)
        runs = Runs(self.tenants, meter, self.metrics)
        tools = self._tools = ToolRoutes(runs, self.tenants)
        routes = [
            Route("/v1/chat/completions", functools.partial(self._complete, CHAT), methods=["POST"]),
            Route("/v1/completions", functools.partial(self._complete, COMPLETION), methods=["POST"]),
            Route("/v1/responses", functools.partial(self._complete, RESPONSE), methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._one_model),
            *ProgramRoutes(self.tenants).routes(),
            *RunRoutes(runs, self.tenants).routes(),
            *FileRoutes(runs).routes(),
            *RunSockets(runs, self.tenants).routes(),
            *tools.routes(),
            *self._engine_routes.routes(),
            Route("/health", self._health),
            Route("/version", _version),
            Route("/metrics", self._metrics),
        ]
        handlers: Mapping[Any, Callable[[Request, Any], Response]] = {
            HttpProblem: lambda _, error: _refusal(error),
            PierayError: lambda _, error: _refusal(_told(error)),
            HTTPException: lambda _, error: _refusal(HttpProblem(error.status_code, str(error.detail))),
            ClientDisconnect: lambda *_: Response(status_code=499),
            Exception: lambda *_: _refusal(HttpProblem(500, "the server failed; its log says how")),
        }
        app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
        if self._telemetry is not None:
            app = self._telemetry.around(app, self.tenants.engine)
        return guard.around(app)

    async def close(self) -> None:
        """Hang up what was opened for tenants."""
        if self._engine_routes is not None:
            self._engine_routes.close()
        if self._telemetry is not None:
            await self._telemetry.close()
        if self._tools is not None:
            await self._tools.close()
        await self.tenants.close()

    # --- what generates ------------------------------------------------------------------------

    async def _complete(self, kind: Kind, request: Request) -> Response:
        clock = Clock()
        body, caller = await read_json(request), caller_of(request)
        engine = await self.tenants.engine_of(caller)
        name = clock.model = text("model", body.get("model") or self.model, 200)
        asked: Asked
        is_own = name in self._served
        if is_own:
            asked, program = await worked_out(request, kind.read, body), _source(self._generate)
        else:
            main = await main_named(engine, name)
            asked = await worked_out(request, read_for_program, body, name, main, kind.route)
            program = _source(name)
        on_model = self._served.get(name, "")
        process = await unless_gone(request, self._launch(engine, program, asked, caller, trace_of(request), on_model))
        clock.launched, clock.asked = time.perf_counter(), asked.arguments
        answer = kind.answer(asked, name, int(time.time()))
        headers = {"x-pieray-run": process.id}
        end = functools.partial(self._end, process, clock if is_own else None)
        self.metrics.running.inc()
        events = process.aevents() if asked.is_stream else None
        try:
            if events is None:
                result = await unless_gone(request, self._result(process, is_own=is_own))
            else:
                first = await unless_gone(request, _first(events))  # an error before all else has a status of its own
        except BaseException:
            end()
            raise
        if events is not None:
            return EventStream(self._chunks(process, first, events, answer, clock, is_own=is_own), end, headers)
        if not is_own:
            end()
            return _json({**answer.whole(result), "result": result["result"]}, headers)
        try:
            whole = answer.whole(result)
            self.metrics.ended(clock, result)
        except Exception:
            log.exception(
                "run %s: its program's result is not what the door takes", process.id, extra={"run": process.id}
            )
            raise _no_openai(process) from None
        finally:
            end()
        return _json(whole, headers)

    def _end(self, process: Process, clock: Clock | None) -> None:
        """Nobody waits for it any more.  `clock`: of a request of the served model."""
        self.metrics.running.dec()
        if clock is not None and not process.is_done:
            self.metrics.left(clock)
        kill_soon(process)

    async def _launch(
        self, engine: Engine, program: str | ProgramSource, asked: Asked, caller: Caller, trace: str, on_model: str = ""
    ) -> Process:
        priority = asked.door.get("priority", 0)
        check_priority(caller, priority)
        process = await engine.alaunch(
            program, asked.arguments, attached=True, priority=priority, trace=trace, on_model=on_model
        )
        if self._meter is not None:
            self._meter.watch(process, caller)
        self.metrics.launched(process.name)
        about = {"run": process.id, "program": process.name, "labels": asked.labels}
        log.info("run %s of %s %s", process.id, process.name, asked.labels or "", extra=about)
        return process

    async def _result(self, process: Process, *, is_own: bool) -> dict[str, Any]:
        value = await process.wait()
        if is_own:
            found: dict[str, Any] = value
            return found
        texts = [event.text async for event in process]
        return answers.of_program(texts, value, await _total_tokens(process))

    async def _chunks(
        self,
        process: Process,
        first: Event,
        events: AsyncGenerator[Event, None],
        answer: Answer | ResponseAnswer,
        clock: Clock,
        *,
        is_own: bool,
    ) -> AsyncGenerator[bytes, None]:
        """What a client is sent, events that have come together in one piece."""
        parts: list[bytes] = []
        has_said = False
        event = first
        try:
            async with aclosing(events):
                while True:
                    if event.kind == "text":
                        has_said = has_said or bool(event.text)
                        parts.append(answer.text(event.text))
                    elif event.kind == "data" and is_own:
                        data = json.loads(event.text)
                        if data["name"] == "delta":
                            parts.append(answer.delta(data["value"]))
                    elif event.kind == "result":
                        result = json.loads(event.text)
                        if not is_own:
                            result = answers.of_program([], result, await _total_tokens(process))
                            if not has_said:
                                parts.append(answer.text(result["choices"][0]["content"]))
                        else:
                            self.metrics.ended(clock, result)
                        parts += answer.end(result)
                    if parts and (event.number + 1 >= process.num_events or len(parts) >= MOST_TOGETHER):
                        clock.first = clock.first or time.perf_counter()
                        yield b"".join(parts)
                        parts.clear()
                    if event.kind == "result":
                        return
                    event = await anext(events)
        except PierayError as error:
            yield b"".join([*parts, answer.failed(_told(error))])
        except Exception:
            log.exception(
                "run %s: its program's events are not what the door takes", process.id, extra={"run": process.id}
            )
            yield b"".join([*parts, answer.failed(_no_openai(process))])

    # --- what does not -------------------------------------------------------------------------

    async def _embeddings(self, request: Request) -> Response:
        body = await read_json(request)
        asked = await worked_out(request, read_embeddings, body)
        name = asked.door.get("model", self.model)
        if name not in self._served:
            raise HttpProblem(
                404, f"{name[:100]!r} gives no embeddings; {self.model!r} does", param="model", code="model_not_found"
            )
        caller = caller_of(request)
        engine = await self.tenants.engine_of(caller)
        process = await unless_gone(
            request, self._launch(engine, _source(self._embed), asked, caller, trace_of(request), self._served[name])
        )
        try:
            result = await unless_gone(request, process.wait())
        finally:
            kill_soon(process)
        encoding = asked.door.get("encoding_format", "float")
        return _json(answers.embeddings(result, name, encoding), {"x-pieray-run": process.id})

    async def _models(self, _: Request) -> Response:
        return _json({"object": "list", "data": await models_of(self.tenants.engine, self._served, self._began)})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        for row in await models_of(self.tenants.engine, self._served, self._began):
            if row["id"] == name:
                return _json(row)
        raise HttpProblem(404, f"there is no model {name[:100]!r}", param="model", code="model_not_found")

    async def _metrics(self, _: Request) -> Response:
        engine = self.tenants.engine
        status, models = await asyncio.gather(off_loop(engine.status), off_loop(engine.models))
        return Response(self.metrics.exposition(status, models), media_type=CONTENT_TYPE_LATEST)

    async def _health(self, _: Request) -> Response:
        await off_loop(self.tenants.engine.models)
        return _json({"status": "ok"})


async def _first(events: AsyncGenerator[Event, None]) -> Event:
    """The first event that says something to the client.  Raises the inferlet's error, if it says nothing before."""
    while (event := await anext(events)).kind in ("log", "file", "error"):
        pass
    return event


@functools.cache
def _source(name: str) -> str | ProgramSource:
    """An embedded inferlet, read once; the name of an installed one."""
    return embedded(name) or name


async def _total_tokens(process: Process) -> int:
    usage = await process.ausage()
    return usage["tokens_computed"] + usage["tokens_found"]


async def _version(_: Request) -> Response:
    return _json({"version": pieray.__version__})


def _json(value: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encoded(value), media_type="application/json", headers=headers)


def _no_openai(process: Process) -> HttpProblem:
    return HttpProblem(500, f"{process.name} does not answer as an OpenAI inferlet does; the log says how")


def _told(error: PierayError) -> HttpProblem:
    """What the client is told; what failed here, the log has as a whole."""
    problem = problem_of(error)
    if problem.status >= 500:
        log.warning("%s: %s", error.code, error.message)
    return problem


def _refusal(problem: HttpProblem) -> Response:
    return JSONResponse(problem.body, problem.status, problem.headers)
