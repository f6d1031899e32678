"""Files to and from a run, as bytes."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pieray.client.process import ReceivedFile, received_files
from pieray.concurrency.off_loop import off_loop
from pieray.errors import Cancelled
from pieray.server.bodies import read_bytes
from pieray.server.guard import caller_of
from pieray.server.problems import RETRY_S, HttpProblem
from pieray.server.replies import json_reply
from pieray.server.runs.kept import Run, Runs
from pieray.server.values import shown

MOST_FILE_BYTES = 64 << 20
READ_S = 120.0
"""For all of a file to come."""
MOST_UPLOADS = 8
"""Files that come at one time: each is held whole until its run has it."""


class FileRoutes:
    """`/v1/runs/ID/files`."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._num_coming = 0

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/runs/{id}/files", self._list),
            Route("/v1/runs/{id}/files/{name:path}", self._get, methods=["GET"]),
            Route("/v1/runs/{id}/files/{name:path}", self._put, methods=["PUT"]),
        ]

    async def _list(self, request: Request) -> Response:
        """Whole files that the run has sent so far, in order; of a name that it has sent again, each."""
        rows = [{"name": one.name, "size": len(one.data)} for one in await _sent_by(self._named(request))]
        return json_reply({"object": "list", "data": rows})

    async def _get(self, request: Request) -> Response:
        """The file of that name that it has sent last."""
        name = request.path_params["name"]
        for one in reversed(await _sent_by(self._named(request))):
            if one.name == name:
                # no browser takes for a page of this server what a program has made
                headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
                return Response(one.data, headers=headers, media_type="application/octet-stream")
        raise HttpProblem(404, f"the run has sent no file {shown(name)}", code="not_found")

    async def _put(self, request: Request) -> Response:
        """A web page cannot send this unasked, whatever its type: only GET, HEAD and POST go without a question."""
        run, name = self._named(request), request.path_params["name"]
        if self._num_coming >= MOST_UPLOADS:
            raise HttpProblem(
                429, f"at most {MOST_UPLOADS} files come at one time", code="overloaded", retry_after_s=RETRY_S
            )
        self._num_coming += 1
        try:
            data = await read_bytes(request, MOST_FILE_BYTES, READ_S)
            await run.process.asend_file(name, data)
        except Cancelled as error:
            raise HttpProblem(409, f"the run has ended: {error.message}", code=error.code) from None
        finally:
            self._num_coming -= 1
        found: dict[str, Any] = {"id": run.process.id, "object": "run.file", "name": name, "size": len(data)}
        return json_reply(found, status=201)

    def _named(self, request: Request) -> Run:
        return self._runs.named(request.path_params["id"], caller_of(request))


async def _sent_by(run: Run) -> list[ReceivedFile]:
    events = [event for event in run.process.seen() if event.kind == "file"]
    return await off_loop(received_files, events)
