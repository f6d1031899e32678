"""The client and a run, for threads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from typing import Any, Self

import httpx

from pieray_client import wire
from pieray_client.errors import ClientError, ConnectionFailed, of_answer
from pieray_client.events import Event, EventReader, Result, Text
from pieray_client.wire import Content, Deadline, ProgramFacts, RunState, SentFile, Tries


class Client:
    """A pieray server.  Use as a context manager, or `close` it.  Thread-safe.

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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._max_retries = max_retries
        self._http = httpx.Client(
            base_url=wire.base_of(url),
            headers=wire.headers_of(api_key),
            timeout=httpx.Timeout(timeout, connect=wire.CONNECT_S),
            transport=transport,
        )

    def run(
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
        with self.launch(name, {**(input or {}), **arguments}, messages=messages, files=files, **options) as run:
            return run.result(timeout)

    def launch(
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
    ) -> Run:
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
        return Run(self, self._json("POST", wire.launch_path(name), json=body, headers=headers)["id"])

    def attach(self, run_id: str) -> Run:
        """A run that was launched before.  Raises NotFound: there is none, or it is kept no longer."""
        self.state(run_id)
        return Run(self, run_id)

    def state(self, run_id: str) -> RunState:
        """How a run stands.  Raises NotFound."""
        return wire.state_of(self._json("GET", wire.run_path(run_id)))

    def runs(self) -> list[RunState]:
        """The runs of this key's tenant that the server knows, without their results."""
        return [wire.state_of(row) for row in self._json("GET", "/v1/runs")["data"]]

    def kill(self, run_id: str) -> RunState:
        """End a run now; one that has ended stays as it is.  Raises NotFound."""
        return wire.state_of(self._json("DELETE", wire.run_path(run_id)))

    def programs(self) -> list[ProgramFacts]:
        """The programs that may be run."""
        return [wire.program_of(row) for row in self._json("GET", "/v1/inferlets")["data"]]

    def install(self, path: str | PathLike[str], source: str | None = None) -> ProgramFacts:
        """Install a Python file, or `source` under the name of `path`.  Raises Denied: the key is no admin's."""
        return wire.program_of(self._json("POST", "/v1/inferlets", json=wire.program_body(path, source)))

    def uninstall(self, name: str) -> list[str]:
        """Forget a program, or NAME@VERSION; what is gone.  Raises Denied, NotFound."""
        found: list[str] = self._json("DELETE", f"/v1/inferlets/{name}")["uninstalled"]
        return found

    def close(self) -> None:
        """Hang up.  Runs go on as long as they are kept."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return self._ask(method, path, **options).json()

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """An answer of status 2xx.  Raises ClientError."""
        tries = Tries(self._max_retries)
        while True:
            try:
                answer = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                failed: ClientError = ConnectionFailed(f"{method} {path}: {error}")
            else:
                if answer.is_success:
                    return answer
                failed = of_answer(answer.status_code, answer.content, answer.headers)
            time.sleep(tries.wait_after(failed))


class Run:
    """A run of a program.  Iterating gives its texts as they come.  As a context manager it ends with the block."""

    def __init__(self, client: Client, run_id: str) -> None:
        self.id = run_id
        self._client = client
        self._is_over = False

    def __repr__(self) -> str:
        return f"<Run {self.id}>"

    def events(self, after: int = -1, *, timeout: float | None = None) -> Iterator[Event]:
        """Its events behind number `after`, as they come, up to its result; a broken connection is opened again.

        Raises RunFailed and its kinds at the end, if it has failed; TimedOut after `timeout` seconds (or up to 5 more,
        if it says nothing); ConnectionFailed; NotFound, if it is kept no longer.
        """
        reader, deadline, tries = EventReader(after), Deadline(timeout), Tries(self._client._max_retries)
        while True:
            deadline.check(f"run {self.id}")
            last = reader.last
            try:
                for event in self._stream(reader, deadline):
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
            time.sleep(tries.wait_after(failed))

    def _stream(self, reader: EventReader, deadline: Deadline) -> Iterator[Event]:
        """Events from one connection."""
        reader.begin()
        headers = {"last-event-id": str(reader.last)} if reader.last >= 0 else {}
        timeout = httpx.Timeout(wire.CONNECT_S, read=deadline.silence_s())
        path = wire.run_path(self.id, "events")
        with self._client._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
            if not answer.is_success:
                raise of_answer(answer.status_code, answer.read(), answer.headers)
            for line in answer.iter_lines():
                try:
                    event = reader.take(line)
                finally:
                    self._is_over |= reader.is_over
                if event is not None:
                    yield event
                deadline.check(f"run {self.id}")

    def __iter__(self) -> Iterator[str]:
        return (event.text for event in self.events() if isinstance(event, Text))

    def result(self, timeout: float | None = None) -> Any:
        """Wait for its end and give what its `main` returned.  Raises as `events`; after a TimedOut it goes on."""
        for event in self.events(timeout=timeout):
            if isinstance(event, Result):
                return event.value
        raise AssertionError("events end with the result")

    def send(self, text: str) -> None:
        """Send it a message.  Raises Conflict: it has ended; Overloaded: too many wait unread."""
        self._client._ask("POST", wire.run_path(self.id, "messages"), json={"text": text})

    def send_file(self, name: str, data: Content) -> None:
        """Send it a file, bytes or a path, of at most 64 MiB.  Raises Conflict, Overloaded, InvalidRequest."""
        self._client._ask("PUT", wire.run_path(self.id, "files", name), content=wire.content(data))

    def files(self) -> list[SentFile]:
        """The whole files that it has sent so far, in order."""
        rows = self._client._json("GET", wire.run_path(self.id, "files"))["data"]
        return [SentFile(row["name"], row["size"]) for row in rows]

    def file(self, name: str) -> bytes:
        """The last file of that name that it has sent.  Raises NotFound."""
        return self._client._ask("GET", wire.run_path(self.id, "files", name)).content

    def state(self) -> RunState:
        """How it stands."""
        return self._client.state(self.id)

    def kill(self) -> None:
        """End it now; `result` raises Cancelled then."""
        self._client.kill(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_over:
            with suppress(ClientError):  # then it ends by itself, when its `keep_s` is over
                self.kill()
