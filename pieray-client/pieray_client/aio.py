"""The client and a run, for an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping, Sequence
from contextlib import aclosing, suppress
from os import PathLike
from typing import Any, Self

import httpx

from pieray_client import wire
from pieray_client.errors import ClientError, ConnectionFailed, of_answer
from pieray_client.events import Event, EventReader, Result, Text
from pieray_client.wire import Content, Deadline, ProgramFacts, RunState, SentFile, Tries


class AsyncClient:
    """A pieray server.  Use as an async context manager, or `close` it.

    `url`: http://HOST:PORT, with /v1 or without.  `timeout`: seconds that an answer may take; a run may take as long
    as it likes.  `max_retries`: how often a request is sent again that did not get through, or found no room for at
    most 30 s; a launch happens once all the same.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        timeout: float = 120.0,
        max_retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._max_retries = max_retries
        self._http = httpx.AsyncClient(
            base_url=wire.base_of(url),
            headers=wire.headers_of(api_key),
            timeout=httpx.Timeout(timeout, connect=wire.CONNECT_S),
            transport=transport,
        )

    async def run(
        self,
        name: str,
        input: Mapping[str, Any] | None = None,
        /,
        *,
        timeout: float | None = None,
        limits: Mapping[str, float] | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        messages: Sequence[str] = (),
        files: Mapping[str, Content] | None = None,
        **arguments: Any,
    ) -> Any:
        """Run a program and give what its `main` returned; `input` and `arguments` are its arguments.

        It ends if this is interrupted, or takes longer than `timeout` seconds.  Raises as `launch` and `Run.result`.
        """
        options: dict[str, Any] = {"limits": limits, "priority": priority, "deadline_s": deadline_s}
        launched = await self.launch(name, {**(input or {}), **arguments}, messages=messages, files=files, **options)
        async with launched as run:
            return await run.result(timeout)

    async def launch(
        self,
        name: str,
        input: Mapping[str, Any] | None = None,
        /,
        *,
        limits: Mapping[str, float] | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        messages: Sequence[str] = (),
        files: Mapping[str, Content] | None = None,
        keep_s: float = 60.0,
        **arguments: Any,
    ) -> AsyncRun:
        """Launch an embedded or installed program, perhaps NAME@VERSION; it runs when this returns.

        `messages` and `files` (by name) are sent to it at once.  `keep_s`: how long it goes on when nobody reads its
        events, in seconds.  `limits`, `priority` (-100 to 100) and `deadline_s` are those of `Engine.launch`.

        Raises NotFound (no such program), InvalidRequest (an argument does not fit), Overloaded, Unavailable,
        AuthenticationFailed, ConnectionFailed.
        """
        body = wire.launch_body(
            input,
            arguments,
            limits=limits,
            priority=priority,
            deadline_s=deadline_s,
            messages=messages,
            files=files or {},
            keep_s=keep_s,
        )
        headers = {"idempotency-key": wire.new_key()}
        return AsyncRun(self, (await self._json("POST", wire.launch_path(name), json=body, headers=headers))["id"])

    async def attach(self, run_id: str) -> AsyncRun:
        """A run that was launched before.  Raises NotFound: there is none, or it is kept no longer."""
        await self.state(run_id)
        return AsyncRun(self, run_id)

    async def state(self, run_id: str) -> RunState:
        """How a run stands.  Raises NotFound."""
        return wire.state_of(await self._json("GET", wire.run_path(run_id)))

    async def runs(self) -> list[RunState]:
        """The runs of this key's tenant that the server knows, without their results."""
        return [wire.state_of(row) for row in (await self._json("GET", "/v1/runs"))["data"]]

    async def kill(self, run_id: str) -> RunState:
        """End a run now; one that has ended stays as it is.  Raises NotFound."""
        return wire.state_of(await self._json("DELETE", wire.run_path(run_id)))

    async def programs(self) -> list[ProgramFacts]:
        """The programs that may be run."""
        return [wire.program_of(row) for row in (await self._json("GET", "/v1/inferlets"))["data"]]

    async def install(self, path: str | PathLike[str], source: str | None = None) -> ProgramFacts:
        """Install a Python file, or `source` under the name of `path`.  Raises Denied: the key is no admin's."""
        return wire.program_of(await self._json("POST", "/v1/inferlets", json=wire.program_body(path, source)))

    async def uninstall(self, name: str) -> list[str]:
        """Forget a program, or NAME@VERSION; what is gone.  Raises Denied, NotFound."""
        found: list[str] = (await self._json("DELETE", f"/v1/inferlets/{name}"))["uninstalled"]
        return found

    async def close(self) -> None:
        """Hang up.  Runs go on as long as they are kept."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _json(self, method: str, path: str, **options: Any) -> Any:
        return (await self._ask(method, path, **options)).json()

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """An answer of status 2xx.  Raises ClientError."""
        tries = Tries(self._max_retries)
        while True:
            try:
                answer = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                failed: ClientError = ConnectionFailed(f"{method} {path}: {error}")
            else:
                if answer.is_success:
                    return answer
                failed = of_answer(answer.status_code, answer.content, answer.headers)
            await asyncio.sleep(tries.wait_after(failed))


class AsyncRun:
    """A run of a program.  `async for` gives its texts as they come, `await` its result.

    As an async context manager it ends with the block.
    """

    def __init__(self, client: AsyncClient, run_id: str) -> None:
        self.id = run_id
        self._client = client
        self._is_over = False

    def __repr__(self) -> str:
        return f"<AsyncRun {self.id}>"

    async def events(self, after: int = -1, *, timeout: float | None = None) -> AsyncGenerator[Event, None]:
        """Its events behind number `after`, as they come, up to its result; a broken connection is opened again.

        Raises RunFailed and its kinds at the end, if it has failed; TimedOut after `timeout` seconds (or up to 5 more,
        if it says nothing); ConnectionFailed; NotFound, if it is kept no longer.
        """
        reader, deadline, tries = EventReader(after), Deadline(timeout), Tries(self._client._max_retries)
        while True:
            deadline.check(f"run {self.id}")
            last = reader.last
            try:
                async with aclosing(self._stream(reader, deadline)) as events:
                    async for event in events:
                        yield event
                        if isinstance(event, Result):
                            return
                failed: ClientError = ConnectionFailed(f"the events of run {self.id} have broken off")
            except httpx.ReadTimeout as error:
                if deadline.silence_s() < wire.SILENT_S:  # it is looked at, and not dead
                    continue
                failed = ConnectionFailed(f"the events of run {self.id}: {error}")
            except httpx.TransportError as error:
                failed = ConnectionFailed(f"the events of run {self.id}: {error}")
            if reader.last > last:
                tries = Tries(self._client._max_retries)
            await asyncio.sleep(tries.wait_after(failed))

    async def _stream(self, reader: EventReader, deadline: Deadline) -> AsyncGenerator[Event, None]:
        """Events from one connection."""
        reader.begin()
        headers = {"last-event-id": str(reader.last)} if reader.last >= 0 else {}
        timeout = httpx.Timeout(wire.CONNECT_S, read=deadline.silence_s())
        path = wire.run_path(self.id, "events")
        async with self._client._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
            if not answer.is_success:
                raise of_answer(answer.status_code, await answer.aread(), answer.headers)
            async for line in answer.aiter_lines():
                try:
                    event = reader.take(line)
                finally:
                    self._is_over |= reader.is_over
                if event is not None:
                    yield event
                deadline.check(f"run {self.id}")

    async def __aiter__(self) -> AsyncIterator[str]:
        async with aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, Text):
                    yield event.text

    def __await__(self) -> Generator[Any, None, Any]:
        """`await run` is its result."""
        return self.result().__await__()

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for its end and give what its `main` returned.  Raises as `events`; after a TimedOut it goes on."""
        async with aclosing(self.events(timeout=timeout)) as events:
            async for event in events:
                if isinstance(event, Result):
                    return event.value
        raise AssertionError("events end with the result")

    async def send(self, text: str) -> None:
        """Send it a message.  Raises Conflict: it has ended; Overloaded: too many wait unread."""
        await self._client._ask("POST", wire.run_path(self.id, "messages"), json={"text": text})

    async def send_file(self, name: str, data: Content) -> None:
        """Send it a file, bytes or a path, of at most 64 MiB.  Raises Conflict, Overloaded, InvalidRequest."""
        await self._client._ask("PUT", wire.run_path(self.id, "files", name), content=wire.content(data))

    async def files(self) -> list[SentFile]:
        """The whole files that it has sent so far, in order."""
        rows = (await self._client._json("GET", wire.run_path(self.id, "files")))["data"]
        return [SentFile(row["name"], row["size"]) for row in rows]

    async def file(self, name: str) -> bytes:
        """The last file of that name that it has sent.  Raises NotFound."""
        return (await self._client._ask("GET", wire.run_path(self.id, "files", name))).content

    async def state(self) -> RunState:
        """How it stands."""
        return await self._client.state(self.id)

    async def kill(self) -> None:
        """End it now; `result` raises Cancelled then."""
        await self._client.kill(self.id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._is_over:
            with suppress(ClientError):  # then it ends by itself, when its `keep_s` is over
                await self.kill()
