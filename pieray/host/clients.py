"""Serves the clients of an actor's inferlets, and the actors of their parents: who is attached, what they send."""

from __future__ import annotations

import contextlib
import logging
import time
from concurrent.futures import Future
from functools import partial

from pieray.errors import Cancelled, InvalidRequest, NotFound, PeerLost, PierayError
from pieray.host.core import InferletHost
from pieray.host.session.client_servers import ClientServers
from pieray.host.session.files import Uploads
from pieray.host.session.session import EventLog, Sink
from pieray.messages import (
    AskUsage,
    Attach,
    AwaitStart,
    Bind,
    ClientAnswer,
    Completed,
    Failed,
    Kill,
    Launch,
    LaunchHere,
    Message,
    SendFile,
    SendText,
    ServeTools,
    decode_one,
)
from pieray.transport import Connection

log = logging.getLogger(__name__)


Request = LaunchHere | Attach | AskUsage | AwaitStart | SendText | SendFile | ServeTools | Kill


class ClientService:
    """Serves clients' connections: launch by a grant, attach, send, kill; and bind, for those of parents."""

    def __init__(self, host: InferletHost) -> None:
        self._host = host
        self._attached: dict[int, dict[str, tuple[EventLog, Sink]]] = {}  # by connection, then inferlet
        self._uploads: dict[int, Uploads] = {}
        self._serving: dict[int, list[ClientServers]] = {}

    def on_connect(self, conn: Connection) -> None:
        self._attached[id(conn)] = {}
        self._uploads[id(conn)] = Uploads()
        self._serving[id(conn)] = []

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, ClientAnswer):
                self._pass_on(conn, message)
                continue
            if isinstance(message, Bind):
                self._bind(conn, message)
                continue
            if not isinstance(message, Request):
                log.warning("client %s sent %s, which is none of its business", conn.peer_id, type(message).__name__)
                continue
            try:
                self._serve(conn, message)
            except PierayError as error:
                conn.send([Failed(message.ticket, error.code, error.message)], lane=message.instance_id)

    def _serve(self, conn: Connection, message: Request) -> None:
        if isinstance(message, LaunchHere):
            self._launch(conn, message)
            return
        inferlet = self._host.find(message.instance_id)
        value: bool | dict[str, int] | None = None
        if isinstance(message, AwaitStart):
            inferlet.started.add_done_callback(lambda started: _tell_start(conn, message.ticket, started))
            return
        if isinstance(message, Attach):
            value = not self._attach(conn, inferlet.log, message.cursor)
        elif isinstance(message, AskUsage):
            value = inferlet.usage()
        elif isinstance(message, SendText):
            inferlet.deliver(message.text)
        elif isinstance(message, SendFile):
            data = self._uploads[id(conn)].add(message, inferlet.scratch_bytes)
            if data is not None:
                inferlet.deliver_file(message.name, data)
        elif isinstance(message, ServeTools):
            if (servers := inferlet.client_servers) is not None:
                servers.serve(conn)
                self._serving[id(conn)].append(servers)
        else:
            inferlet.kill(Cancelled(message.reason))
        conn.send([Completed(message.ticket, value)], lane=message.instance_id)  # behind its events

    def _launch(self, conn: Connection, message: LaunchHere) -> None:
        launch = decode_one(message.launch, Launch)
        if launch.instance_id != message.instance_id:
            raise InvalidRequest(f"the launch of {message.instance_id!r} is one of {launch.instance_id!r}")
        self._host.check_revision(launch.name, message.revision)
        due = partial(self._host.check_due, message.sent_at, message.deadline)
        self._host.launch_granted(launch, due, message.grant)
        inferlet = self._host.find(launch.instance_id)
        if launch.is_attached:
            self._host.attachments.bind(id(conn), launch.instance_id, is_bound=True)
            if inferlet.log.is_ended:
                self._host.attachments.ended(launch.instance_id)
        self._attach(conn, inferlet.log, 0)
        conn.send([Completed(message.ticket, time.monotonic())], lane=launch.instance_id)

    def _pass_on(self, conn: Connection, answer: ClientAnswer) -> None:
        """To the inferlet that waits for it, if it still does."""
        with contextlib.suppress(NotFound):
            if (servers := self._host.find(answer.instance_id).client_servers) is not None:
                servers.answered(conn, answer)

    def _bind(self, conn: Connection, message: Bind) -> None:
        try:
            inferlet = self._host.find(message.instance_id)
        except NotFound as error:
            conn.send([Failed(message.ticket, error.code, error.message)], lane=message.instance_id)
            return
        self._host.attachments.bind(id(conn), message.instance_id, is_bound=message.is_bound)
        if inferlet.log.is_ended:
            self._host.attachments.ended(message.instance_id)
        conn.send([Completed(message.ticket, None)], lane=message.instance_id)

    def _attach(self, conn: Connection, log: EventLog, cursor: int) -> bool:
        """False if the client must ask again for the rest of the story."""
        attached = {i: found for i, found in self._attached[id(conn)].items() if not found[0].is_ended}
        self._attached[id(conn)] = attached
        known = attached.get(log.instance_id)
        sink = known[1] if known is not None else partial(self._host.post_events, conn)
        attached[log.instance_id] = log, sink
        return log.subscribe(cursor, sink)

    def on_close(self, conn: Connection, _error: PeerLost) -> None:
        self._uploads.pop(id(conn), None)
        for servers in self._serving.pop(id(conn), []):
            servers.gone(conn)
        self._host.attachments.lost(id(conn))
        for log, sink in self._attached.pop(id(conn), {}).values():
            log.unsubscribe(sink)


def _tell_start(conn: Connection, ticket: int, started: Future[None]) -> None:
    """From whatever thread; a client that is gone hears nothing."""
    error = started.exception()
    code, message = (error.code, error.message) if isinstance(error, PierayError) else ("internal", repr(error))
    with contextlib.suppress(PeerLost):
        conn.send([Completed(ticket, None) if error is None else Failed(ticket, code, message)])
