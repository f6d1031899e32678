"""The programs that may be run, listed; and what admins install and uninstall."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pieray.client.engine import Engine
from pieray.concurrency.off_loop import off_loop
from pieray.programs.manifest import of_source
from pieray.programs.sources import embedded_inferlets, of_manifest
from pieray.server.bodies import read_json, worked_out
from pieray.server.guard import caller_of
from pieray.server.models import main_named
from pieray.server.problems import BadField, HttpProblem
from pieray.server.replies import json_reply
from pieray.server.tenants import Tenants
from pieray.server.values import shown, text


class ProgramRoutes:
    """`/v1/inferlets`."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/inferlets", self._list, methods=["GET"]),
            Route("/v1/inferlets", self._install, methods=["POST"]),
            Route("/v1/inferlets/{name}", self._one, methods=["GET"]),
            Route("/v1/inferlets/{name}", self._uninstall, methods=["DELETE"]),
        ]

    async def _list(self, _: Request) -> Response:
        rows = [
            {"name": name, "version": one.version, "description": one.description, "is_embedded": True}
            for name, one in embedded_inferlets().items()
        ]
        rows += [
            {name: row[name] for name in ("name", "version", "description")} | {"is_embedded": False}
            for row in await off_loop(self._tenants.engine.programs)
        ]
        return json_reply({"object": "list", "data": rows})

    async def _one(self, request: Request) -> Response:
        """One program, with what its main takes; `parameters` is null where that is not known."""
        name = request.path_params["name"]
        main = await main_named(await self._tenants.engine_of(caller_of(request)), name)
        parameters = None
        if main.parameters is not None:
            parameters = [
                {"name": one.name, "type": str(one), "is_required": one.is_required} for one in main.parameters.values()
            ]
        return json_reply({"name": name, "object": "inferlet", "parameters": parameters})

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
        return json_reply(await off_loop(engine.install, program), status=201)

    async def _uninstall(self, request: Request) -> Response:
        engine = await self._administered(request)
        return json_reply({"uninstalled": await off_loop(engine.uninstall, request.path_params["name"])})

    async def _administered(self, request: Request) -> Engine:
        caller = caller_of(request)
        if not caller.is_admin:
            raise HttpProblem(403, "programs are installed with a key of role admin, or `pieray install`")
        return await self._tenants.engine_of(caller)
