"""The heart of a Broker actor: serves InferletActors over connections.  No Ray."""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Iterable
from typing import Any, TypeAlias

from pieray.broker.buffer import Answer, Bounds, Caller
from pieray.broker.exchange import Exchange
from pieray.broker.flow import Flow
from pieray.broker.store import Store
from pieray.errors import PeerLost, PierayError, ProtocolError
from pieray.messages import (
    Broadcast,
    Completed,
    Failed,
    Message,
    Next,
    Pull,
    Push,
    Settle,
    StoreDelete,
    StoreGet,
    StoreNames,
    StorePut,
    StorePutIf,
    Subscribe,
    Unsubscribe,
    Withdraw,
)
from pieray.pulse import PulsedLock
from pieray.transport import Connection

log = logging.getLogger(__name__)

Asking: TypeAlias = Push | Pull | Broadcast | Subscribe | Next
Telling: TypeAlias = Unsubscribe | Withdraw | Settle
Storing: TypeAlias = StoreGet | StorePut | StorePutIf | StoreDelete | StoreNames


class BrokerService:
    """Thread-safe; one lock guards all of it.  A peer that dies loses what it waits for and its subscriptions."""

    def __init__(self, bounds: Bounds, store: Store) -> None:
        self._exchange = Exchange(bounds)
        self._store = store
        self._flows: dict[str, Flow] = {}
        self._lock = PulsedLock()
        self._wake = threading.Condition(self._lock)  # type: ignore[arg-type]  # all that it needs of a lock
        self._is_closed = False
        self._awake_at = math.inf  # when the thread of the deadlines wakes by itself
        threading.Thread(target=self._watch_deadlines, name="pieray-broker-deadlines", daemon=True).start()

    def on_connect(self, conn: Connection) -> None:
        with self._lock:
            if conn.peer_id in self._flows:
                raise ProtocolError(f"{conn.peer_id} is connected already")
            self._flows[conn.peer_id] = Flow(conn)

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        with self._lock:
            flow = self._flows.get(conn.peer_id)
            if flow is None or flow.conn is not conn:
                return
            for message in flow.received(messages):
                self._serve(flow, message)
            if (self._exchange.next_deadline() or math.inf) < self._awake_at:
                self._wake.notify()
        self._flush()

    def on_close(self, conn: Connection, _error: PeerLost) -> None:
        with self._lock:
            flow = self._flows.get(conn.peer_id)
            if flow is None or flow.conn is not conn:
                return
            del self._flows[conn.peer_id]
            self._tell(self._exchange.drop_peer(conn.peer_id))
        self._flush()

    def _serve(self, flow: Flow, message: Message) -> None:
        peer = flow.conn.peer_id
        if isinstance(message, Asking):
            self._tell(self._asked(peer, message))
        elif isinstance(message, Telling):
            self._tell(self._told(peer, message))
        elif isinstance(message, Storing):
            _post(flow, self._stored(message))
        else:
            raise ProtocolError(f"a {flow.conn.role} does not send {type(message).__name__} to a broker")

    def _asked(self, peer: str, message: Asking) -> list[Answer]:
        exchange = self._exchange
        if isinstance(message, Next):
            return exchange.next(Caller(peer, message.ticket), message.subscription)
        caller = Caller(peer, message.ticket, message.inferlet)
        if isinstance(message, Pull):
            return exchange.pull(caller, message.tenant, message.name)
        if isinstance(message, Subscribe):
            return exchange.subscribe(caller, message.tenant, message.name, message.subscription)
        send = exchange.push if isinstance(message, Push) else exchange.broadcast
        return send(caller, message.tenant, message.name, message.text, _deadline(message.timeout_ms))

    def _told(self, peer: str, message: Telling) -> list[Answer]:
        if isinstance(message, Withdraw):
            return self._exchange.withdraw(peer, message.ticket)
        if isinstance(message, Settle):
            return self._exchange.settle(peer, message.ticket, message.is_taken)
        return self._exchange.unsubscribe(peer, message.subscription)

    def _stored(self, message: Storing) -> Message:
        try:
            return Completed(message.ticket, self._in_store(message))
        except PierayError as error:
            return Failed(message.ticket, error.code, error.message)
        except sqlite3.Error as error:
            log.exception("the store failed")
            return Failed(message.ticket, "internal", f"the key-value store failed: {error}")

    def _in_store(self, message: Storing) -> str | int | None:
        store, tenant = self._store, message.tenant
        if isinstance(message, StoreGet):
            return store.get(tenant, message.key)
        if isinstance(message, StorePut):
            store.put(tenant, message.key, message.value, ttl_s=message.ttl_ms / 1e3, max_bytes=message.max_bytes)
            return None
        if isinstance(message, StorePutIf):
            expected = None if message.is_absent else message.expected
            return int(store.put_if(tenant, message.key, expected, message.value, max_bytes=message.max_bytes))
        if isinstance(message, StoreDelete):
            return int(store.delete(tenant, message.key))
        return store.names(tenant, message.prefix, message.max_bytes)

    def _tell(self, answers: Iterable[Answer]) -> None:
        for caller, result in answers:
            flow = self._flows.get(caller.peer)
            if flow is None:
                continue
            if isinstance(result, PierayError):
                _post(flow, Failed(caller.ticket, result.code, result.message))
            else:
                _post(flow, Completed(caller.ticket, result))

    def _flush(self) -> None:
        for flow in list(self._flows.values()):
            try:
                flow.flush()
            except PeerLost:
                log.debug("%s is gone; what it had comes back when its connection closes", flow.conn.peer_id)

    def _watch_deadlines(self) -> None:
        while True:
            with self._wake:
                deadline = self._exchange.next_deadline()
                self._awake_at = math.inf if deadline is None else deadline
                self._wake.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
                if self._is_closed:
                    return
                self._tell(self._exchange.expire(time.monotonic()))
            self._flush()

    @property
    def busy_s(self) -> float:
        """How long somebody has been at work under the lock."""
        return self._lock.busy_s

    def status(self) -> dict[str, Any]:
        """Numbers of what is kept; the books are checked first."""
        with self._lock:
            self._exchange.check()
            return {**self._exchange.status(), **self._store.status(), "peers": len(self._flows)}

    def close(self) -> None:
        """Stop; idempotent."""
        with self._wake:
            if not self._is_closed:
                self._is_closed = True
                self._store.close()
                self._wake.notify_all()


def _deadline(timeout_ms: int) -> float:
    return time.monotonic() + timeout_ms / 1e3 if timeout_ms else -math.inf


def _post(flow: Flow, message: Message) -> None:
    """Post to a peer that may just have died: what it had comes back when its connection closes."""
    with contextlib.suppress(PeerLost):
        flow.post(message)
