"""The engine over HTTP, as the page at `/ui` shows it: `/v1/engine`, and the inferlets that run on it.

A tenant sees and ends its own inferlets, whoever administers the server those of all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import pieray
from pieray.client.chrome_trace import chrome_trace
from pieray.client.process import Process
from pieray.concurrency.off_loop import off_loop
from pieray.engine_metrics import steps_of_groups
from pieray.errors import NotFound
from pieray.server.guard import caller_of
from pieray.server.json_texts import encoded
from pieray.server.keys import Caller
from pieray.server.problems import HttpProblem
from pieray.server.runs.events import event_stream
from pieray.server.streams import EventStream
from pieray.server.tenants import Tenants
from pieray.server.ui import page_files
from pieray.server.ui.watch import Seen, Watch, pages_of

MOST_ATTACHED = 64
"""Inferlets that the door listens to for those who look at them."""
ACTOR_FIELDS = ("role", "name", "incarnation", "state", "pid", "node_id", "executor", "num_live", "silent_s", "error")
STEP_FIELDS = ("steps", "forwards", "tokens", "copies", "failed", "busy_s", "mean_batch", "queued")


class EngineRoutes:
    """`/v1/engine`: what the engine is and does.  For one event loop."""

    def __init__(self, tenants: Tenants, model: str, *, asks_for_keys: bool) -> None:
        self._tenants = tenants
        self._model = model
        self._asks_for_keys = asks_for_keys
        self._watch = Watch(tenants.engine)
        self._began = time.time()
        self._attached: dict[str, Process] = {}
        """Inferlets that somebody looks at, whoever launched them; the one asked for last is the last."""

    def routes(self) -> list[Route]:
        return [
            Route("/v1/engine", self._engine),
            Route("/v1/engine/inferlets/{id}", self._kill, methods=["DELETE"]),
            Route("/v1/engine/inferlets/{id}/events", self._events),
            Route("/v1/engine/inferlets/{id}/trace", self._trace),
            *page_files.routes(),
        ]

    def close(self) -> None:
        self._watch.close()

    async def _engine(self, request: Request) -> Response:
        """All of it; of the pages over time what is newer than the Unix time `since`."""
        since = _since(request.query_params.get("since", ""))
        caller, seen = caller_of(request), await self._watch.look()
        status = seen.status
        admission = status["admission"]
        steps: Mapping[str, Any] = steps_of_groups(status["actors"]) or {}
        return _json(
            {
                "object": "engine",
                "version": pieray.__version__,
                "at": seen.at,
                "serves_since": self._began,
                "model": self._model,
                "caller": {"tenant": caller.tenant, "user": caller.user, "is_admin": caller.is_admin},
                "asks_for_keys": self._asks_for_keys,
                "failure": status["failure"],
                "num_restarts": status["num_restarts"],
                "models": await off_loop(self._tenants.engine.models),
                "actors": [_fields(row, ACTOR_FIELDS) for row in status["actors"]],
                "steps": _fields(steps, STEP_FIELDS),
                "pages": pages_of(status),
                "pages_over_time": self._watch.samples(since),
                "waiting": sum(admission["waiting"].values()),
                "refused": sum(admission["refused"].values()),
                "inferlets": _seen_by(caller, seen),
            }
        )

    async def _kill(self, request: Request) -> Response:
        name = await self._named(request)
        await self._tenants.engine.akill(name, "killed over HTTP")
        return _json({"id": name, "object": "engine.inferlet", "state": "killed"})

    async def _events(self, request: Request) -> Response:
        """The events of an inferlet from its first on, as those of a run: reading them neither keeps nor ends it."""
        process = await self._attach(await self._named(request))
        return EventStream(event_stream(process, 0), lambda: None, {"x-pieray-run": process.id})

    async def _trace(self, request: Request) -> Response:
        """What a traced inferlet and its children have done, as a Chrome trace."""
        name = await self._named(request)
        traces = await off_loop(self._tenants.engine.trace, name)
        return _json(await off_loop(chrome_trace, traces))

    async def _named(self, request: Request) -> str:
        """The id in the path, if the caller may see that inferlet.  Raises HttpProblem 404."""
        name, caller = request.path_params["id"], caller_of(request)
        for anew in (False, True):  # it may have been launched since the engine was asked
            seen = await self._watch.look(anew=anew)
            if any(row["instance_id"] == name for row in _seen_by(caller, seen)):
                return str(name)
        raise HttpProblem(404, f"no inferlet {name[:100]!r} runs, and none has ended lately", code="not_found")

    async def _attach(self, name: str) -> Process:
        process = self._attached.pop(name, None)
        if process is None:
            try:
                process = await self._tenants.engine.aattach(name)
            except NotFound as error:
                raise HttpProblem(404, error.message, code="not_found") from None
        self._attached[name] = process
        while len(self._attached) > MOST_ATTACHED:
            del self._attached[next(iter(self._attached))]
        return process


def _seen_by(caller: Caller, seen: Seen) -> list[dict[str, Any]]:
    """Of one whose actor does not answer nobody knows the tenant: only who administers the server sees it."""
    return [row for row in seen.inferlets if caller.is_admin or row.get("tenant") == caller.tenant]


def _fields(row: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names if name in row}


def _since(text: str) -> float:
    try:
        return float(text or 0)
    except ValueError:
        raise HttpProblem(400, f"since is a Unix time; given {text[:100]!r}", param="since") from None


def _json(value: object) -> Response:
    return Response(encoded(value), media_type="application/json", headers={"cache-control": "no-store"})
