"""A client's connection to one InferletActor: events in, messages out, for all its processes there."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pieray.deadlines import Deadline
from pieray.errors import PeerLost, PierayError
from pieray.messages import (
    Attach,
    AwaitStart,
    Bind,
    CancelCall,
    ClientAnswer,
    ClientCall,
    Event,
    Kill,
    Message,
    SendFile,
    SendText,
    ServeTools,
    read_file_part,
)
from pieray.process import Event as ProcessEvent
from pieray.transport import Connection, Endpoint, PendingCalls, connect

if TYPE_CHECKING:
    from pieray.clienttools import ClientTools

log = logging.getLogger(__name__)

TOOLS_PATIENCE_S = 10.0
"""For the servers of tools to end, when a link closes."""
PART_BYTES = 1 << 20
"""Of a file, sent in one message."""


class Listener(Protocol):
    """Who hears of an inferlet, called on the link's reader thread; usually a `Process`."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def is_done(self) -> bool: ...

    @property
    def num_events(self) -> int: ...

    def add(self, events: list[ProcessEvent]) -> None: ...

    def lose(self, error: PierayError) -> None: ...


class ActorLink:
    """Routes events to processes by instance id.  Thread-safe."""

    def __init__(self, endpoint: Endpoint, *, peer_id: str, token: str, timeout_s: float,
                 on_lost: Callable[[ActorLink], None]) -> None:  # fmt: skip
        self.endpoint = endpoint
        self._processes: dict[str, list[Listener]] = {}  # handles of one inferlet may be many
        self._lock = threading.Lock()
        self._tools: dict[str, ClientTools] = {}
        self._closing: list[threading.Thread] = []
        self._uploading = threading.Lock()  # one file at a time: the parts of two would not follow each other
        self._is_closing = False
        self._calls = PendingCalls()
        self._on_lost = on_lost
        self._conn: Connection = connect(
            endpoint, self, role="client", peer_id=peer_id, token=token, timeout_s=timeout_s
        )

    @property
    def is_open(self) -> bool:
        return self._conn.is_open

    def attach(self, process: Listener, timeout_s: float = 30.0) -> None:
        """Stream the process's events to it from where it stands; on return, all so far are there."""
        with self._lock:
            self._processes.setdefault(process.id, []).append(process)
        try:
            while self._call(lambda ticket: Attach(ticket, process.id, process.num_events), timeout_s):
                log.debug("the story of %s is long: more of it is asked for", process.id)
        except BaseException:
            self._detach(process)
            raise
        if process.is_done:
            self._detach(process)

    def bind(self, instance_id: str, timeout_s: float = 30.0) -> None:
        """The inferlet ends with this connection from now on.  Raises NotFound, PeerLost, DeadlineExceeded."""
        self._call(lambda ticket: Bind(ticket, instance_id, is_bound=True), timeout_s)

    def _detach(self, process: Listener) -> None:
        with self._lock:
            others = [p for p in self._processes.pop(process.id, []) if p is not process]
            if others:
                self._processes[process.id] = others

    def await_start(self, instance_id: str, timeout: float | None) -> None:
        """Return once the inferlet runs; raises why it never will."""
        self._call(lambda ticket: AwaitStart(ticket, instance_id), timeout)

    def send_text(self, instance_id: str, text: str, timeout: float | None) -> None:
        self._call(lambda ticket: SendText(ticket, instance_id, text), timeout)

    def send_file(self, instance_id: str, name: str, data: bytes, timeout: float | None) -> None:
        """In parts, each answered before the next is sent: the connection stays free for others."""
        deadline = Deadline(timeout)
        while not self._uploading.acquire(timeout=deadline.left_s()):
            deadline.check(f"file {name!r} has not had its turn behind others")
        try:
            for offset in range(0, max(len(data), 1), PART_BYTES):
                part = data[offset : offset + PART_BYTES]
                is_last = offset + PART_BYTES >= len(data)
                self._call(partial(_part, instance_id, name, offset, part, is_last), deadline)
        finally:
            self._uploading.release()

    def serve_tools(self, process: Listener, tools: ClientTools, timeout_s: float = 30.0) -> None:
        """Answer the calls of the process from `tools`, which are closed when it ends, or this link does."""
        with self._lock:
            self._tools[process.id] = tools
        self._call(lambda ticket: ServeTools(ticket, process.id), timeout_s)
        if process.is_done:
            self._end_tools(process.id)

    def _end_tools(self, instance_id: str) -> None:
        with self._lock:
            tools = self._tools.pop(instance_id, None)
            if tools is not None:
                self._closing = [*(t for t in self._closing if t.is_alive()), tools.close_soon()]

    def _call_tools(self, conn: Connection, call: ClientCall) -> None:
        tools = self._tools.get(call.instance_id)

        def reply(answer: ClientAnswer) -> None:
            try:
                conn.send([answer])
            except PeerLost:
                log.debug("%s is gone: nobody waits for %s", call.instance_id, call.tool)
            except PierayError as error:  # it cannot travel
                with contextlib.suppress(PeerLost):
                    conn.send([replace(answer, value="", code=error.code, message=error.message)])

        if tools is not None:
            tools.answer(call, reply)

    def kill(self, instance_id: str, reason: str, timeout: float | None) -> None:
        self._call(lambda ticket: Kill(ticket, instance_id, reason), timeout)

    def ask(self, make: Callable[[int], Message], done: Callable[[Any, PierayError | None], None]) -> None:
        """Send `make(ticket)`; `done` is called once, with the answer or an error, on the reader thread.

        Raises PeerLost; `done` is not called then.
        """
        self._calls.submit(self._conn, make, done)

    def close(self) -> None:
        """Hang up, and wait for the tools' servers that were run here, as long as these have to end."""
        self._is_closing = True
        self._conn.close("the client has closed its engine handle")
        for instance_id in list(self._tools):
            self._end_tools(instance_id)
        deadline = Deadline(TOOLS_PATIENCE_S)
        with self._lock:
            threads = list(self._closing)
        for closing in threads:
            closing.join(deadline.left_s())

    def _call(self, make: Callable[[int], Message], timeout: float | Deadline | None) -> Any:
        return self._calls.call(self._conn, make, timeout)

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        by_id: dict[str, list[ProcessEvent]] = {}
        for message in messages:
            if isinstance(message, ClientCall):
                self._call_tools(conn, message)
            elif isinstance(message, CancelCall):
                if (tools := self._tools.get(message.instance_id)) is not None:
                    tools.cancel(message)
            elif isinstance(message, Event):
                event = ProcessEvent(message.kind, _text(message.payload), message.number)
                by_id.setdefault(message.instance_id, []).append(event)
        for instance_id, events in by_id.items():
            with self._lock:
                processes = list(self._processes.get(instance_id, ()))
            for process in processes:
                process.add(events)
                if process.is_done:
                    self._detach(process)
                    self._end_tools(instance_id)
        self._calls.resolve(conn, messages)  # behind the events: who attaches has them all when it is answered

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        self._calls.fail_all(conn, error)
        with self._lock:
            processes = [process for found in self._processes.values() for process in found]
            self._processes = {}
        for process in processes:
            if self._is_closing:
                reason = f"the engine handle of {process.name} {process.id} is closed; it may run on"
            else:
                reason = f"the actor that hosted {process.name} {process.id} is gone: {error.message}"
            process.lose(PeerLost(reason))
        for instance_id in list(self._tools):
            self._end_tools(instance_id)
        self._on_lost(self)


def _part(instance_id: str, name: str, offset: int, data: bytes, is_last: bool, ticket: int) -> SendFile:
    return SendFile(ticket, instance_id, name, offset, data, is_last)


def _text(payload: str | bytes) -> str:
    """Of a file's part: JSON, as `pieray.process.Event` has it."""
    if isinstance(payload, str):
        return payload
    head, data = read_file_part(payload)
    return json.dumps({**head, "data": base64.b64encode(data).decode("ascii")})
