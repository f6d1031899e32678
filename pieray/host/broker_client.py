"""An InferletActor's side of the Broker: one connection for all of its inferlets."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any

from pieray.broker.flow import Flow
from pieray.errors import PeerLost, PierayError
from pieray.messages import Message
from pieray.transport import Connection, Endpoint, PendingCalls, connect
from pieray.transport.calls import Done
from pieray.transport.redial import Redial

log = logging.getLogger(__name__)


class BrokerClient:
    """Posts requests, routes answers; reconnects when the connection is lost.  Thread-safe; nothing here waits.

    Until the first broker is there, requests are kept for it.  When it is lost, those under way fail with PeerLost, and
    new ones do until the next one is there.
    """

    def __init__(self, *, peer_id: str, token: str, timeout_s: float = 10.0) -> None:
        self._peer_id = peer_id
        self._token = token
        self._timeout_s = timeout_s
        self._calls = PendingCalls()
        self._numbers = itertools.count(1)
        self._endpoint: Endpoint | None = None
        self._flow: Flow | None = None
        self._early: list[tuple[Callable[[int], Message], Done]] | None = []  # before the first broker; None behind
        self._early_lock = threading.Lock()
        self._connecting = threading.Lock()
        self._closed = threading.Event()
        self._redial = Redial("broker", self._dial_again)
        self._error = "it is not up yet"
        self.generation = 0
        """Grows with every connection: what an earlier one had at the broker is gone."""

    def open(self, endpoint: Endpoint) -> None:
        """Connect, in place of the broker that there was.  Raises PeerLost, DeadlineExceeded."""
        self._endpoint = endpoint
        with self._connecting:
            self._connect(endpoint)

    def _connect(self, endpoint: Endpoint) -> None:
        old, self._flow = self._flow, None
        if old is not None:
            old.conn.close("the broker was replaced")
        self.generation += 1
        peer_id = f"{self._peer_id}/{self.generation}"
        conn = connect(endpoint, _Link(self._flow_of, self._calls, self._lost), role="inferlets", peer_id=peer_id,
                       token=self._token, timeout_s=self._timeout_s)  # fmt: skip
        self._flow = Flow(conn)
        if not conn.is_open:  # lost before `_lost` could know it as ours
            raise PeerLost("the Broker hung up")
        if self._closed.is_set():
            conn.close("this InferletActor is closing")
        with self._early_lock:
            early, self._early = self._early or [], None
        for make, done in early:
            try:
                self.ask(make, done)
            except PierayError as error:
                done(None, error)
        self.flush()

    def new_number(self) -> int:
        """A number that no other request or subscription of this client has."""
        return next(self._numbers)

    def ask(self, make: Callable[[int], Message], done: Done) -> None:
        """Post `make(ticket)` for the next `flush`; `done` is called once, on another thread.

        Raises PeerLost, and what `make` raises; if that is called later, `done` gets its error.
        """
        if self._kept(make, done):
            return
        flow = self._flow
        if flow is None or not flow.conn.is_open:
            raise PeerLost("the Broker is gone; another one is on its way")
        ticket = self._calls.expect(flow.conn, done)
        try:
            flow.post(make(ticket))
        except PierayError:
            if self._calls.forget(ticket):
                raise

    def _kept(self, make: Callable[[int], Message], done: Done) -> bool:
        """Whether the request waits for the first broker."""
        if self._early is None:
            return False
        with self._early_lock:
            if self._early is None:
                return False
            self._early.append((make, done))
            return True

    def tell(self, message: Message) -> None:
        """Post what has no answer; a broker that is gone needs not to know."""
        if (flow := self._flow) is not None:
            with contextlib.suppress(PeerLost):
                flow.post(message)

    def flush(self) -> None:
        """Send what was posted as one frame."""
        if (flow := self._flow) is not None:
            with contextlib.suppress(PeerLost):
                flow.flush()

    def _flow_of(self, conn: Connection) -> Flow | None:
        flow = self._flow
        return flow if flow is not None and flow.conn is conn else None

    def _lost(self, conn: Connection, error: PeerLost) -> None:
        self._calls.fail_all(conn, PeerLost(f"the Broker is gone, and with it queues and topics: {error.message}"))
        if not self._closed.is_set() and self._flow_of(conn) is not None:
            self._error = error.message
            self._redial.start()

    def _dial_again(self) -> None:
        """The connection broke: the broker may live, or a new one is announced by `open` meanwhile."""
        with self._connecting:
            if self._endpoint is not None and (self._flow is None or not self._flow.conn.is_open):
                self._connect(self._endpoint)

    def status(self) -> dict[str, Any]:
        """Whether the link is up; if not, why."""
        is_up = (flow := self._flow) is not None and flow.conn.is_open
        return {"is_up": is_up, "error": "" if is_up else self._redial.error or self._error}

    def close(self) -> None:
        """Hang up; idempotent."""
        self._closed.set()
        self._redial.close()
        if (flow := self._flow) is not None:
            flow.conn.close("this InferletActor is closing")
        with self._early_lock:
            early, self._early = self._early or [], None
        for _, done in early:
            done(None, PeerLost("this InferletActor is closing"))


class _Link:
    """A connection's service."""

    def __init__(self, flow_of: Callable[[Connection], Flow | None], calls: PendingCalls,
                 lost: Callable[[Connection, PeerLost], None]) -> None:  # fmt: skip
        self._flow_of = flow_of
        self._calls = calls
        self._lost = lost

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        flow = self._flow_of(conn)
        if flow is None:
            return
        for message in self._calls.resolve(conn, flow.received(messages)):
            log.warning("the Broker sent %s, which is no answer", type(message).__name__)
        with contextlib.suppress(PeerLost):
            flow.flush()

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        self._lost(conn, error)
