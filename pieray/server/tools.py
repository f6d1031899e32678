"""Inferlets as the tools of an MCP server, at `/mcp` (streamable HTTP): installed ones, or those that `?tools=` names.

No sessions: each request stands for itself.  A call is a run like any other, and ends with the request that made it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

import pieray
from pieray.concurrency.off_loop import off_loop
from pieray.errors import PierayError
from pieray.programs.schemas import input_schema
from pieray.programs.sources import embedded_inferlets
from pieray.server.bodies import READ_S, read_bytes
from pieray.server.guard import caller_of
from pieray.server.models import main_named
from pieray.server.problems import HttpProblem, problem_of
from pieray.server.runs.kept import Run, Runs
from pieray.server.runs.wanted import read_run
from pieray.server.streams import cancelled, until_gone
from pieray.server.tenants import Tenants
from pieray.server.values import shown

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

MOST_BYTES = 4 << 20
"""Of a request."""
MOST_NAMED = 64
"""Tools that a URL names."""
GONE = "pieray.gone"
"""Of a request's scope: an event, set when its client has left."""


class ToolRoutes:
    """The MCP server.  For one event loop; the library is loaded by the first request."""

    def __init__(self, runs: Runs, tenants: Tenants) -> None:
        self._runs = runs
        self._tenants = tenants
        self._starting: asyncio.Future[StreamableHTTPSessionManager] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._is_over = asyncio.Event()
        self._known: dict[tuple[str, str], dict[str, Any]] = {}
        """Schemas of installed programs, by name and digest."""

    def routes(self) -> list[BaseRoute]:
        return [Route("/mcp", self._handle, methods=["POST"])]

    async def close(self) -> None:
        """End the calls that are under way."""
        self._is_over.set()
        if self._keeping is not None:
            await asyncio.wait([self._keeping])

    async def _handle(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # nothing that a web page may send unasked
            raise HttpProblem(415, f"content-type is application/json; given {kind[:100]!r}")
        _named(request)
        data = await read_bytes(request, MOST_BYTES, READ_S)
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_future()
            self._keeping = asyncio.ensure_future(self._keep(self._starting))
        return _Passed(await asyncio.shield(self._starting), data)

    async def _keep(self, starting: asyncio.Future[StreamableHTTPSessionManager]) -> None:
        """The library's contexts are entered and left by one task: this one."""
        try:
            make, manager_of = await asyncio.to_thread(_library)
            server = make(
                "pieray", version=pieray.__version__, on_list_tools=self._list_tools, on_call_tool=self._call_tool
            )
            manager = manager_of(server, stateless=True, max_request_body_size=MOST_BYTES)
            async with manager.run():
                starting.set_result(manager)
                await self._is_over.wait()
        except BaseException as error:
            if not starting.done():
                starting.set_exception(error)
            raise

    # --- tools ---------------------------------------------------------------------------------

    async def _list_tools(self, ctx: Any, _: Any) -> Any:
        from mcp import types

        rows = await self._tools(ctx.request)
        return types.ListToolsResult(
            tools=[types.Tool(name=name, description=text or None, input_schema=schema) for name, text, schema in rows]
        )

    async def _tools(self, request: Request) -> list[tuple[str, str, dict[str, Any]]]:
        """Name, description and schema of each that the request may call."""
        engine = await self._tenants.engine_of(caller_of(request))
        installed = {
            str(row["name"]): row for row in await off_loop(engine.programs)
        }  # of each name the newest is last
        there = embedded_inferlets()
        found = []
        for name in _named(request) or installed:
            if name in there:
                facts = there[name]
                found.append((name, facts.description, input_schema(await main_named(engine, name))))
            elif name in installed:
                row = installed[name]
                key = name, str(row["sha256"])
                if key not in self._known:
                    self._known[key] = input_schema(await main_named(engine, name))
                found.append((name, str(row["description"]), self._known[key]))
        return found

    async def _call_tool(self, ctx: Any, asked: Any) -> Any:
        from mcp import types

        try:
            run = await self._launch(ctx.request, asked.name, asked.arguments or {})
            self._runs.come(run)
            try:
                await _ended_unless_gone(run, ctx.request.scope[GONE])
            finally:
                self._runs.leave(run)
            said, result = await off_loop(_told, run)
        except (HttpProblem, PierayError) as error:
            problem = error if isinstance(error, HttpProblem) else problem_of(error)
            return types.CallToolResult(content=[types.TextContent(text=problem.message)], is_error=True)
        return types.CallToolResult(content=[types.TextContent(text=said)], structured_content={"result": result})

    async def _launch(self, request: Request, name: str, arguments: dict[str, Any]) -> Run:
        named = _named(request)
        if named and name not in named:
            raise HttpProblem(404, f"there is no tool {shown(name)}; there are: {', '.join(named)}")
        engine = await self._tenants.engine_of(caller_of(request))
        main = await main_named(engine, name)
        main.check(arguments)
        return await self._runs.new(caller_of(request), name, read_run({"input": arguments}))


class _Passed(Response):
    """The library's answer to a request whose body has been read; it is cancelled when the client leaves."""

    def __init__(self, manager: StreamableHTTPSessionManager, data: bytes) -> None:
        self._manager = manager
        self._data = data
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = scope[GONE] = asyncio.Event()
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if not is_read:
                is_read = True
                return {"type": "http.request", "body": self._data, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        answering = asyncio.ensure_future(self._manager.handle_request(scope, replay, send))
        leaving = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            gone.set()
            await cancelled(answering, leaving)


async def _ended_unless_gone(run: Run, gone: asyncio.Event) -> None:
    """Wait for the end of a run.  Raises HttpProblem 499 if its client leaves before."""
    ending, leaving = asyncio.ensure_future(run.process.until_ended()), asyncio.ensure_future(gone.wait())
    try:
        await asyncio.wait({ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            raise HttpProblem(499, "the client has left")
    finally:
        await cancelled(ending, leaving)


def _told(run: Run) -> tuple[str, Any]:
    """What it said, or else its result as text; and its result.  Raises the run's error."""
    ending = run.process.ending()
    result = json.loads(ending.text)
    said = "".join(event.text for event in run.process.seen() if event.kind == "text")
    return said or (result if isinstance(result, str) else ending.text), result


def _named(request: Request) -> list[str]:
    """The tools that the URL asks for.  Raises HttpProblem 400."""
    given = request.query_params.get("tools", "")
    names = [name for name in given.split(",") if name]
    if len(names) > MOST_NAMED:
        raise HttpProblem(400, f"tools names at most {MOST_NAMED} inferlets; given {len(names)}")
    return names


def _library() -> tuple[Callable[..., Server[Any]], Callable[..., StreamableHTTPSessionManager]]:
    """Imported off the event loop: it takes a while."""
    from mcp.server.lowlevel import Server
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    return Server, StreamableHTTPSessionManager
