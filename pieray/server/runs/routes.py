"""The routes of runs.

`POST /v1/inferlets/NAME/runs` launches one.  Its events have numbers: a client that has lost its connection goes on at
`GET /v1/runs/ID/events` behind the number in `Last-Event-ID`, as long as the run is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pieray.errors import Cancelled, PierayError
from pieray.server.bodies import read_json
from pieray.server.guard import caller_of
from pieray.server.json_texts import encoded
from pieray.server.problems import RETRY_S, HttpProblem, problem_of
from pieray.server.replies import encoded_reply, json_reply
from pieray.server.runs.events import event_stream, raw
from pieray.server.runs.kept import Run, Runs
from pieray.server.runs.launching import launch, read_wanted
from pieray.server.streams import EventStream, unless_gone
from pieray.server.tenants import Tenants
from pieray.server.values import shown, text

END_S = 10.0
"""For a run that is killed to end."""
MOST_MESSAGE = 1 << 22
"""Characters of a message to a run."""


class RunRoutes:
    """`/v1/inferlets/NAME/runs` and `/v1/runs`."""

    def __init__(self, runs: Runs, tenants: Tenants) -> None:
        self._runs = runs
        self._tenants = tenants

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/inferlets/{name}/runs", self._launch, methods=["POST"]),
            Route("/v1/runs", self._list),
            Route("/v1/runs/{id}", self._one, methods=["GET"]),
            Route("/v1/runs/{id}", self._kill, methods=["DELETE"]),
            Route("/v1/runs/{id}/events", self._events),
            Route("/v1/runs/{id}/messages", self._send, methods=["POST"]),
        ]

    async def _launch(self, request: Request) -> Response:
        name, body = request.path_params["name"], await read_json(request)
        wanted = await read_wanted(self._tenants, request, name, body)
        run = await unless_gone(request, launch(self._runs, request, name, body, wanted))
        headers = {"x-pieray-run": run.process.id}
        if wanted.stream:
            return self._streamed(run, 0, headers)
        if not wanted.wait:
            return encoded_reply(run.as_json(), headers, status=202)
        self._runs.come(run)
        try:
            await unless_gone(request, run.process.until_ended())
        finally:
            self._runs.leave(run)
        return _whole(run, headers)

    async def _list(self, request: Request) -> Response:
        return json_reply({"object": "list", "data": [run.state() for run in self._runs.seen_by(caller_of(request))]})

    async def _one(self, request: Request) -> Response:
        return encoded_reply(self._named(request).as_json())

    async def _kill(self, request: Request) -> Response:
        run = self._named(request)
        await run.process.akill("killed over HTTP")
        try:
            async with asyncio.timeout(END_S):
                await run.process.until_ended()
        except TimeoutError:
            raise HttpProblem(503, f"the run has not ended within {END_S:g} s", retry_after_s=RETRY_S) from None
        return encoded_reply(run.as_json())

    async def _send(self, request: Request) -> Response:
        run, body = self._named(request), await read_json(request)
        if set(body) != {"text"}:
            raise HttpProblem(400, f"a message is {{text}}; given {shown(sorted(body))}")
        try:
            await run.process.asend(text("text", body["text"], MOST_MESSAGE))
        except Cancelled as error:
            raise HttpProblem(409, f"the run has ended: {error.message}", code=error.code) from None
        return json_reply({"id": run.process.id, "object": "run.message"}, status=202)

    async def _events(self, request: Request) -> Response:
        run = self._named(request)
        start = first_wanted("Last-Event-ID", request.headers.get("last-event-id", ""))
        headers = {"x-pieray-run": run.process.id}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        return self._streamed(run, start, headers)

    def _named(self, request: Request) -> Run:
        return self._runs.named(request.path_params["id"], caller_of(request))

    def _streamed(self, run: Run, start: int, headers: Mapping[str, str]) -> Response:
        self._runs.come(run)
        return EventStream(event_stream(run.process, start), lambda: self._runs.leave(run), headers)


def first_wanted(what: str, last: str) -> int:
    """The number of the first event for who has seen those up to `last`, "" if none.  Raises HttpProblem 400."""
    if last and not (last.isascii() and last.isdigit() and len(last) < 10):
        raise HttpProblem(400, f"{what} is the number of an event; given {last[:100]!r}")
    return int(last) + 1 if last else 0


def _whole(run: Run, headers: Mapping[str, str]) -> Response:
    """The run, with all that it sent; of one that failed, its error has the status."""
    status, events = 200, run.process.seen()
    try:
        run.process.ending()
    except PierayError as error:
        status = problem_of(error).status
    texts = encoded([event.text for event in events if event.kind == "text"])
    data = b"[%s]" % b",".join(raw(event.text) for event in events if event.kind == "data")
    return encoded_reply(run.as_json({"texts": texts, "data": data}), headers, status=status)
