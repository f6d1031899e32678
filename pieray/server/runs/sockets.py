"""A run over a websocket: its events as they come, and messages and files to it on the same connection.

`/v1/inferlets/NAME/runs` launches one: the client's first message is what `POST` there has as its body.  `/v1/runs/ID`
goes on with one, behind event `last_event_id` of the query.  The server sends text messages, JSON {id, event, data}
with the events of server-sent events; a "file" says {name, size, offset, length}, and the next message is these bytes.
The first is {event: "run", data: its state}; {event: "refused", data: {code, message, param}} answers what the client
should not have sent.  The client sends {text}, {file: NAME} with its bytes in the next message, or {kill: true}.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from pieray.client.process import Event
from pieray.errors import PierayError
from pieray.server.bodies import READ_S, parsed
from pieray.server.guard import caller_of
from pieray.server.json_texts import encoded
from pieray.server.problems import BadField, HttpProblem, problem_of
from pieray.server.replies import json_reply
from pieray.server.runs.events import data_of, told
from pieray.server.runs.kept import Run, Runs
from pieray.server.runs.launching import launch, read_wanted
from pieray.server.runs.routes import MOST_MESSAGE, first_wanted
from pieray.server.streams import STALL_S, cancelled
from pieray.server.tenants import Tenants
from pieray.server.values import shown, text

log = logging.getLogger(__name__)

MOST_UNREAD = 16
"""Messages of a client that wait for the run to take those before: then no more are read."""
ENDED, WRONG, FAILED = 1000, 1008, 1011
"""Codes that a connection is closed with (RFC 6455, section 7.4.1)."""

Inbox: TypeAlias = "asyncio.Queue[dict[str, Any]]"


class RunSockets:
    """The routes."""

    def __init__(self, runs: Runs, tenants: Tenants) -> None:
        self._runs = runs
        self._tenants = tenants

    def routes(self) -> list[BaseRoute]:
        return [
            WebSocketRoute("/v1/inferlets/{name}/runs", self._launch),
            WebSocketRoute("/v1/runs/{id}", self._attach),
        ]

    async def _launch(self, socket: WebSocket) -> None:
        async def begin(inbox: Inbox) -> Run:
            try:
                async with asyncio.timeout(READ_S):
                    first = await inbox.get()
            except TimeoutError:
                raise HttpProblem(408, f"no request for a run has come within {READ_S:g} s") from None
            body, name = await _json_of(socket, first), socket.path_params["name"]
            for field in ("stream", "wait"):
                if field in body:
                    raise BadField(field, "is none here: the connection has the events", code="unknown_field")
            wanted = await read_wanted(self._tenants, socket, name, body)
            return await launch(self._runs, socket, name, body, wanted)

        await socket.accept()
        await self._serve(socket, begin, 0)

    async def _attach(self, socket: WebSocket) -> None:
        try:
            run = self._runs.named(socket.path_params["id"], caller_of(socket))
            start = first_wanted("last_event_id", socket.query_params.get("last_event_id", ""))
        except HttpProblem as problem:
            await socket.send_denial_response(json_reply(problem.body, problem.headers, status=problem.status))
            return

        async def begin(_: Inbox) -> Run:
            return run

        await socket.accept()
        await self._serve(socket, begin, start)

    async def _serve(self, socket: WebSocket, begin: Callable[[Inbox], Awaitable[Run]], start: int) -> None:
        """All of a connection; if the client leaves, or takes nothing for STALL_S, the run is left."""
        inbox: Inbox = asyncio.Queue(MOST_UNREAD)
        reading = asyncio.ensure_future(_read(socket, inbox))
        talking = asyncio.ensure_future(self._talk(socket, begin, inbox, start))
        try:
            await asyncio.wait({reading, talking}, return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                talking.result()
        except (WebSocketDisconnect, TimeoutError) as gone:
            log.debug("a websocket's client has left: %r", gone)
        finally:
            await cancelled(reading, talking)

    async def _talk(
        self, socket: WebSocket, begin: Callable[[Inbox], Awaitable[Run]], inbox: Inbox, start: int
    ) -> None:
        speaker = _Speaker(socket)
        try:
            run = await begin(inbox)
        except (HttpProblem, PierayError) as error:
            problem = error if isinstance(error, HttpProblem) else problem_of(error)
            await speaker.refuse(problem)
            await socket.close(WRONG if problem.status < 500 else FAILED)
            return
        self._runs.come(run)
        taking = asyncio.ensure_future(_take(socket, speaker, run, inbox))
        try:
            await speaker.say(b'{"event":"run","data":%s}' % encoded(run.state()))
            await speaker.tell(run, start)
            await socket.close(ENDED)
        finally:
            self._runs.leave(run)  # before any wait: who is cancelled once more there would never leave it
            await cancelled(taking)


class _Speaker:
    """What is sent, a message or two that belong together at a time.  Raises TimeoutError: the client takes nothing."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._turn = asyncio.Lock()

    async def say(self, message: bytes, data: bytes | None = None) -> None:
        async with self._turn, asyncio.timeout(STALL_S):
            await self._socket.send_text(message.decode())
            if data is not None:
                await self._socket.send_bytes(data)

    async def refuse(self, problem: HttpProblem) -> None:
        error = problem.body["error"]
        told_of_it = {"code": error["code"], "message": error["message"], "param": error["param"]}
        await self.say(b'{"event":"refused","data":%s}' % encoded(told_of_it))

    async def tell(self, run: Run, start: int) -> None:
        """The events from number `start` on."""
        has_failed = False
        try:
            async with aclosing(run.process.aevents()) as events:
                async for event in events:
                    has_failed = event.kind == "error"
                    if event.number >= start:
                        await self._tell_one(event)
        except PierayError as error:
            if not has_failed:  # it was lost, and has told nothing
                await self.say(b'{"event":"error","data":%s}' % told(error))

    async def _tell_one(self, event: Event) -> None:
        if event.kind != "file":
            found = event.number, event.kind.encode(), data_of(event)
            await self.say(b'{"id":%d,"event":"%s","data":%s}' % found)
            return
        part = json.loads(event.text)
        data = base64.b64decode(part.pop("data"))
        head = encoded({"id": event.number, "event": "file", "data": {**part, "length": len(data)}})
        await self.say(head, data)


async def _read(socket: WebSocket, inbox: Inbox) -> None:
    """What the client sends, until it leaves."""
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        await inbox.put(dict(message))


async def _take(socket: WebSocket, speaker: _Speaker, run: Run, inbox: Inbox) -> None:
    """Give the run what its client sends it, one after the other."""
    while True:
        try:
            await _take_one(socket, run, await inbox.get(), inbox)
        except (HttpProblem, PierayError) as error:
            await speaker.refuse(error if isinstance(error, HttpProblem) else problem_of(error))


async def _take_one(socket: WebSocket, run: Run, message: dict[str, Any], inbox: Inbox) -> None:
    given = await _json_of(socket, message)
    if set(given) == {"text"}:
        await run.process.asend(text("text", given["text"], MOST_MESSAGE))
    elif set(given) == {"file"}:
        name = text("file", given["file"], 1024)
        data = (await inbox.get()).get("bytes")
        if data is None:
            raise BadField("file", "its bytes are the next message; given a text")
        await run.process.asend_file(name, data)
    elif given == {"kill": True}:
        await run.process.akill("killed over a websocket")
    else:
        raise HttpProblem(400, f"a message is {{text}}, {{file}} or {{kill: true}}; given {shown(sorted(given))}")


async def _json_of(socket: WebSocket, message: dict[str, Any]) -> dict[str, Any]:
    if message.get("text") is None:
        raise HttpProblem(400, "bytes come behind {file: NAME}")
    return await parsed(socket, message["text"].encode())
