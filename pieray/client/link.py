"""A client's connection to one InferletActor: events in, messages out, for all its processes there."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pieray.client.process import Event as ProcessEvent
from pieray.concurrency.deadlines import Deadline
from pieray.errors import DeadlineExceeded, EngineError, PeerLost, PierayError
from pieray.messages import (
    AskUsage,
    Attach,
    AwaitStart,
    Bind,
    CancelCall,
    ClientAnswer,
    ClientCall,
    Event,
    Kill,
    LaunchHere,
    Message,
    SendFile,
    SendText,
    ServeTools,
    read_file_part,
)
from pieray.transport import Connection, Endpoint, PendingCalls, connect

if TYPE_CHECKING:
    from pieray.client.placements import Grant
    from pieray.client.tools import ClientTools

log = logging.getLogger(__name__)

TOOLS_TIMEOUT_S = 10.0
"""For the servers of tools to end, when a link closes."""
LAUNCH_S = 3.0
"""How long an actor may take to launch at a granted place; longer than `pieray.concurrency.stalls.STALL_S`."""
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


@dataclass(frozen=True, slots=True)
class GrantedLaunch:
    """An inferlet to be launched at a place of the grant."""

    process: Listener
    grant: Grant
    frame: bytes
    """With the Launch."""
    revision: int = 0
    """See `LaunchHere`."""

    def message(self, now: float, timeout_s: float) -> Callable[[int], LaunchHere]:
        sent_at, deadline = self.grant.clock.at(now), self.grant.clock.at(now + timeout_s)
        return lambda ticket: LaunchHere(
            ticket, self.process.id, self.grant.id, sent_at, deadline, self.frame, self.revision
        )


class ActorLink:
    """Routes events to processes by instance id.  Thread-safe."""

    def __init__(
        self, endpoint: Endpoint, *, peer_id: str, token: str, timeout_s: float, on_lost: Callable[[ActorLink], None]
    ) -> None:
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

    def launch(self, launches: Sequence[GrantedLaunch], timeout_s: float = LAUNCH_S) -> list[PierayError | None]:
        """Launch each at its place and stream its events to it, all in one frame; of each, what refuses it, or None.

        The codes are those of `pieray.messages.LaunchHere`; with DeadlineExceeded the inferlet does not start any more,
        and if it has just started, it is ended.  Raises PeerLost, with none launched.
        """
        with self._lock:
            for one in launches:
                self._processes.setdefault(one.process.id, []).append(one.process)
        now = time.monotonic()
        try:
            outcomes = self._calls.call_many(self._conn, [one.message(now, timeout_s) for one in launches], timeout_s)
        except BaseException as error:
            for one in launches:
                self._detach(one.process)
                if not isinstance(error, PierayError):  # a Ctrl-C
                    self.tell_kill(one.process.id, "its launch was given up")
            raise
        for one, (clock, refused) in zip(launches, outcomes, strict=True):
            if refused is None:
                one.grant.clock.update(clock)
            elif isinstance(refused, DeadlineExceeded):
                self.tell_kill(one.process.id, "its launch was given up")
            if refused is not None or one.process.is_done:
                self._detach(one.process)
        return [refused for _, refused in outcomes]

    def tell_kill(self, instance_id: str, reason: str) -> None:
        """End the inferlet, and wait for nothing."""
        with contextlib.suppress(PierayError):
            self._calls.submit(self._conn, lambda ticket: Kill(ticket, instance_id, reason), lambda *_: None)

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

    def usage(self, instance_id: str, timeout: float | None) -> dict[str, int]:
        found: dict[str, int] = self._call(lambda ticket: AskUsage(ticket, instance_id), timeout)
        return found

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
                conn.send([answer], lane=call.instance_id)
            except PeerLost:
                log.debug("%s is gone: nobody waits for %s", call.instance_id, call.tool)
            except PierayError as error:
                with contextlib.suppress(PeerLost):
                    self._refused(conn, answer, error)

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
        deadline = Deadline(TOOLS_TIMEOUT_S)
        with self._lock:
            threads = list(self._closing)
        for closing in threads:
            closing.join(deadline.left_s())

    def _call(self, make: Callable[[int], Message], timeout: float | Deadline | None) -> Any:
        return self._calls.call(self._conn, make, timeout)

    def on_connect(self, conn: Connection) -> None:
        conn.on_refused = partial(self._refused, conn)

    def _refused(self, conn: Connection, message: Message, error: PierayError) -> None:
        """What cannot travel (it is larger than a frame) fails alone; an inferlet that waits for an answer is told."""
        if isinstance(message, ClientAnswer):
            conn.send([replace(message, value="", code=error.code, message=error.message)], lane=message.instance_id)
        else:
            self._calls.refuse(message, error)

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


_Where = tuple[Endpoint, str]  # actor, tenant


class ActorLinks:
    """One link to each actor (and tenant), dialled when it is first needed and again when it has broken.  Thread-safe.

    While one actor is dialled, which may be frozen, those to others are to be had.
    """

    def __init__(self, *, peer_id: str, token: str, timeout_s: float = 10.0) -> None:
        self._identity = {"peer_id": peer_id, "token": token}
        self._timeout_s = timeout_s
        self._links: dict[_Where, ActorLink] = {}
        self._dialing: dict[_Where, threading.Lock] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    def get(self, endpoint: Endpoint, tenant: str = "") -> ActorLink:
        """The open link to that actor for that tenant: what cuts off one cuts off no other.

        Raises PeerLost, DeadlineExceeded, EngineError when closed.
        """
        where = endpoint, tenant
        with self._lock:
            if (link := self._open_link(where)) is not None:
                return link
            dialing = self._dialing.setdefault(where, threading.Lock())
        if not dialing.acquire(timeout=self._timeout_s):
            raise DeadlineExceeded(f"{endpoint.peer_id} did not answer within {self._timeout_s} s")
        try:
            return self._dialled(where)
        finally:
            dialing.release()

    def _dialled(self, where: _Where) -> ActorLink:
        with self._lock:
            if (link := self._open_link(where)) is not None:  # by another thread, meanwhile
                return link
        link = ActorLink(where[0], **self._identity, timeout_s=self._timeout_s, on_lost=self._forget)
        with self._lock:
            if not self._is_closed:
                self._links[where] = link
                return link
        link.close()
        raise EngineError("this handle is closed")

    def _open_link(self, where: _Where) -> ActorLink | None:
        if self._is_closed:
            raise EngineError("this handle is closed")
        link = self._links.get(where)
        return link if link is not None and link.is_open else None

    def open_links(self) -> list[ActorLink]:
        with self._lock:
            return [link for link in self._links.values() if link.is_open]

    def close(self) -> None:
        """Close all; idempotent."""
        with self._lock:
            self._is_closed = True
            links, self._links = list(self._links.values()), {}
        for link in links:
            link.close()

    def _forget(self, link: ActorLink) -> None:
        with self._lock:
            for where in [where for where, known in self._links.items() if known is link]:
                del self._links[where]
                self._dialing.pop(where, None)


def _part(instance_id: str, name: str, offset: int, data: bytes, is_last: bool, ticket: int) -> SendFile:
    return SendFile(ticket, instance_id, name, offset, data, is_last)


def _text(payload: str | bytes) -> str:
    """Of a file's part: JSON, as `pieray.client.process.Event` has it."""
    if isinstance(payload, str):
        return payload
    head, data = read_file_part(payload)
    return json.dumps({**head, "data": base64.b64encode(data).decode("ascii")})
