"""An InferletActor's side of the Broker: one connection for all of its inferlets."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pieray.broker.flow import Flow, cost_of_message, tenant_of
from pieray.errors import PeerLost, PierayError
from pieray.messages import Completed, Credit, Failed, Message
from pieray.transport import Connection, Endpoint, PendingCalls, connect
from pieray.transport.calls import Done
from pieray.transport.redial import Redial

log = logging.getLogger(__name__)

Make = Callable[[int], Message]


@dataclass(frozen=True, slots=True)
class _Early:
    """What was asked or told before the first broker was there."""

    make: Make
    done: Done | None  # None: it has no answer


class BrokerClient:
    """Posts requests, routes answers; reconnects when the connection is lost.  Thread-safe; nothing here waits.

    The order in which requests are made is the order in which the Broker has them, per tenant.  Until the first broker
    is there, they are kept for it, and what is made while they are sent goes behind them.  When the connection is
    lost, those under way fail with PeerLost, done or not, none is sent again, and new ones fail until the next
    connection is there.  The Broker serves what a connection has brought before what a later one brings.
    """

    def __init__(self, *, peer_id: str, token: str, timeout_s: float = 10.0) -> None:
        self._peer_id = peer_id
        self._token = token
        self._timeout_s = timeout_s
        self._calls = PendingCalls()
        self._numbers = itertools.count(1)
        self._endpoint: Endpoint | None = None
        self._link: _Link | None = None
        self._early: list[_Early] | None = []  # before the first broker; None behind
        self._lock = threading.RLock()  # guards the order: link, early, and what is posted to it
        self._connecting = threading.Lock()
        self._closed = threading.Event()
        self._redial = Redial("broker", self._dial_again)
        self._error = "it is not up yet"
        self.generation = 0
        """Grows with every connection: what an earlier one had at the broker is gone."""

    def open(self, endpoint: Endpoint) -> None:
        """Connect, in place of the broker that there was.  Raises PeerLost, DeadlineExceeded: then it is tried on."""
        self._endpoint = endpoint
        try:
            with self._connecting:
                self._connect(endpoint)
        except PierayError as error:
            self._error = error.message
            self._redial.start()
            raise

    def _dial_again(self) -> None:
        """The connection broke: the broker may live, or a new one is announced by `open` meanwhile."""
        with self._connecting:
            if self._endpoint is not None and not self.is_connected:
                self._connect(self._endpoint)

    def _connect(self, endpoint: Endpoint) -> None:
        with self._lock:
            old, self._link = self._link, None
            self.generation += 1
        if old is not None:
            old.flow.conn.close("the broker was replaced")
        link = _Link(self)
        conn = connect(
            endpoint,
            link,
            role="inferlets",
            peer_id=f"{self._peer_id}/{self.generation}",
            token=self._token,
            timeout_s=self._timeout_s,
        )
        failed = []
        with self._lock:
            if self._closed.is_set():
                conn.close("this InferletActor is closing")
            self._link = link
            early, self._early = self._early or [], None
            for one in early:
                try:
                    self._post(link, one)
                except PierayError as error:
                    failed.append((one, error))
        for one, why in failed:
            if one.done is not None:
                one.done(None, why)
        self.flush()
        if not conn.is_open:  # lost before `_lost` could know it as ours
            raise PeerLost("the Broker hung up")

    @property
    def is_connected(self) -> bool:
        link = self._link
        return link is not None and link.flow.conn.is_open

    def new_number(self) -> int:
        """A number that no other request or subscription of this client has."""
        return next(self._numbers)

    def ask(self, make: Make, done: Done) -> None:
        """Post `make(ticket)`, in its tenant's line, for the next `flush`; `done` is called once, on another thread.

        Raises PeerLost, and what `make` raises; if that is called later, `done` gets its error.
        """
        self._submit(_Early(make, done))

    def tell(self, message: Message) -> None:
        """Post what has no answer; a broker that is gone needs not to know."""
        with contextlib.suppress(PeerLost):
            self._submit(_Early(lambda _: message, None))

    def _submit(self, request: _Early) -> None:
        with self._lock:
            if self._early is not None:
                self._early.append(request)
                return
            if not self.is_connected:
                raise PeerLost("the Broker is gone, or the link to it; another one is on its way")
            assert self._link is not None
            self._post(self._link, request)

    def _post(self, link: _Link, request: _Early) -> None:
        """With the lock held, so that nothing comes between two requests of one inferlet."""
        if request.done is None:
            link.flow.post(request.make(0))
            return
        ticket = self._calls.expect(link.flow.conn, request.done)
        try:
            message = request.make(ticket)
            link.tenants[ticket] = tenant_of(message)
            link.flow.post(message)
        except BaseException:
            link.tenants.pop(ticket, None)
            if self._calls.forget(ticket):
                raise

    def flush(self) -> None:
        """Send what was posted as one frame."""
        if (link := self._link) is not None:
            with contextlib.suppress(PeerLost):
                link.flow.flush()

    def answered(self, link: _Link, messages: list[Message]) -> None:
        """What the broker has sent, on the reader thread."""
        flow, costs, is_urgent = link.flow, Counter[str](), False
        answers: list[Message] = []
        for message in messages:
            if isinstance(message, Credit):
                flow.credited(message)
                is_urgent = True
            elif isinstance(message, Completed | Failed):
                costs[link.tenants.pop(message.ticket, "")] += cost_of_message(message)
                answers.append(message)
            else:
                log.warning("the Broker sent %s, which is no answer", type(message).__name__)
        self._calls.resolve(flow.conn, answers)
        for tenant, cost in costs.items():
            is_urgent |= flow.served(tenant, cost)
        if is_urgent:
            flow.flush()

    def lost(self, link: _Link, error: PeerLost) -> None:
        """The connection broke: what is under way fails, and a new one is made."""
        self._calls.fail_all(
            link.flow.conn,
            PeerLost(
                "the Broker is gone, and with it queues and topics, or the link to it broke; whether this request was "
                f"done is not known: {error.message}"
            ),
        )
        if self._link is link and not self._closed.is_set():
            self._error = error.message
            self._redial.start()

    def status(self) -> dict[str, Any]:
        """Whether the link is up; if not, why."""
        is_up = self.is_connected
        return {"is_up": is_up, "error": "" if is_up else self._redial.error or self._error}

    def close(self) -> None:
        """Hang up; idempotent."""
        with self._lock:
            self._closed.set()
            self._redial.close()
            link = self._link
            early, self._early = self._early or [], None
        if link is not None:
            link.flow.conn.close("this InferletActor is closing")
        for request in early:
            if request.done is not None:
                request.done(None, PeerLost("this InferletActor is closing"))


class _Link:
    """A connection's service.  `flow` is there once it is connected."""

    flow: Flow

    def __init__(self, client: BrokerClient) -> None:
        self._client = client
        self.tenants: dict[int, str] = {}
        """By ticket of what is under way: whose window the answer counts for."""

    def on_connect(self, conn: Connection) -> None:
        self.flow = Flow(conn)

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:  # noqa: ARG002 - the flow's
        with contextlib.suppress(PeerLost):
            self._client.answered(self, messages)

    def on_close(self, conn: Connection, error: PeerLost) -> None:  # noqa: ARG002 - the flow's
        self._client.lost(self, error)
