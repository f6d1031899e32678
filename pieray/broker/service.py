"""The heart of a Broker actor: serves InferletActors over connections.  No Ray."""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pieray.broker.buffer import Answer, Bounds, Caller
from pieray.broker.exchange import Exchange
from pieray.broker.flow import Flow, cost_of_message
from pieray.broker.store import Store
from pieray.broker.turns import Turns
from pieray.deadlines import wait_s
from pieray.errors import PeerLost, PierayError, ProtocolError
from pieray.messages import (
    Broadcast,
    Completed,
    Credit,
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
from pieray.transport import Connection

log = logging.getLogger(__name__)

Asking: TypeAlias = Push | Pull | Broadcast | Subscribe | Next
Telling: TypeAlias = Unsubscribe | Withdraw | Settle
Storing: TypeAlias = StoreGet | StorePut | StorePutIf | StoreDelete | StoreNames
Steps: TypeAlias = Generator[None, None, None]
REQUESTS = (Push, Pull, Broadcast, Subscribe, Next, Unsubscribe, Withdraw, Settle,
            StoreGet, StorePut, StorePutIf, StoreDelete, StoreNames)  # fmt: skip

SLICE_S = 0.001
"""Of long work, before others have a turn."""
FLUSH_S = 0.001
"""How long answers may wait for others to travel with them while there is more to serve."""
FLUSH_COST = 1 << 16
"""How much of them."""
MAX_EXPIRED = 64
"""Requests that are ended at their deadline between two turns."""
CHECKED_TEXTS = 10_000
"""Beyond as many texts `status` leaves the books unchecked: everybody would wait for that."""


@dataclass(eq=False, slots=True)
class _Peer:
    """One connection of one InferletActor."""

    flow: Flow
    num_queued: int = 0
    by_tenant: Counter[str] = field(default_factory=Counter)
    is_gone: bool = False


@dataclass(eq=False, slots=True)
class _Job:
    """A message of a peer, or work of the service's own that goes on in slices."""

    peer: _Peer | None
    message: Message | None
    steps: Steps | None = None


class BrokerService:
    """Thread-safe.  One thread serves; tenants share its time (`Turns`), whatever each has in line.

    A peer that dies loses what it waits for and its subscriptions, once what it had sent is served.  A peer that
    connects anew, under the next generation of its name, is served behind what it had sent before.
    """

    def __init__(self, bounds: Bounds, store: Store) -> None:
        self._exchange = Exchange(bounds)
        self._store = store
        self._peers: dict[str, _Peer] = {}
        self._turns: Turns[_Job] = Turns()
        self._wake = threading.Condition()  # guards peers and turns
        self._books = threading.Lock()  # guards exchange and store
        self._dirty: set[Flow] = set()  # the serving thread's
        self._num_posted = 0
        self._is_closed = False
        threading.Thread(target=self._serve_all, name="pieray-broker", daemon=True).start()

    # --- connections: on their reader threads ---------------------------------------------------

    def on_connect(self, conn: Connection) -> None:
        name = conn.peer_id.rpartition("/")[0]
        with self._wake:
            if conn.peer_id in self._peers:
                raise ProtocolError(f"{conn.peer_id} is connected already")
            earlier = [p for peer_id, p in self._peers.items() if name and peer_id.rpartition("/")[0] == name]
            self._peers[conn.peer_id] = _Peer(Flow(conn))
            for peer in earlier:  # what it still sends must not come behind what it sends from now on
                self._leave(peer)
        for peer in earlier:
            peer.flow.conn.close("the same actor has connected anew")

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        granted = []
        with self._wake:
            peer = self._peers.get(conn.peer_id)
            if peer is None or peer.flow.conn is not conn or peer.is_gone:
                return
            for message in messages:
                if isinstance(message, Credit):
                    granted.append(message)
                elif isinstance(message, REQUESTS):
                    peer.num_queued += 1
                    peer.by_tenant[message.tenant] += 1
                    self._turns.put(message.tenant, _Job(peer, message))
                else:
                    raise ProtocolError(f"a {conn.role} does not send {type(message).__name__} to a broker")
            self._wake.notify()
        with contextlib.suppress(PeerLost):
            for credit in granted:
                peer.flow.credited(credit)
            if granted:
                peer.flow.flush()

    def on_close(self, conn: Connection, _error: PeerLost) -> None:
        with self._wake:
            peer = self._peers.get(conn.peer_id)
            if peer is not None and peer.flow.conn is conn:
                self._leave(peer)

    def _leave(self, peer: _Peer) -> None:
        """With the lock held; idempotent."""
        if not peer.is_gone:
            peer.is_gone = True
            if not peer.num_queued:
                self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        """All that it had sent is served: give up what it waits for.  With the lock held."""
        self._turns.put("", _Job(None, None, self._dropping(peer)))
        self._wake.notify()

    # --- the serving thread ---------------------------------------------------------------------

    def _serve_all(self) -> None:
        flushed_at = time.monotonic()
        while (found := self._next()) is not None:
            began = time.perf_counter()
            tenant, job = found
            self._expire()
            if job is not None:
                self._work(tenant, job)
            now = time.monotonic()
            if not self._turns or now - flushed_at > FLUSH_S or self._num_posted > FLUSH_COST:
                self._flush()
                flushed_at = now
            if job is not None:
                self._turns.charge(tenant, time.perf_counter() - began)

    def _next(self) -> tuple[str, _Job | None] | None:
        """The next piece of work, or none (a deadline has come), when there is one; None when closed."""
        with self._wake:
            while not self._is_closed:
                if self._turns:
                    return self._turns.take()
                deadline = self._exchange.next_deadline()
                left_s = math.inf if deadline is None else deadline - time.monotonic()
                if left_s <= 0:
                    return "", None
                self._wake.wait(None if deadline is None else wait_s(deadline))
        return None

    def _work(self, tenant: str, job: _Job) -> None:
        """One slice of a job."""
        is_over = True
        try:
            with self._books:
                is_over = self._slice(job)
        except BaseException as error:  # the thread serves all the others too
            log.exception("%s failed", type(job.message).__name__)
            self._fail(job, PierayError(f"the Broker failed: {type(error).__name__}: {error}"))
        with self._wake:
            if not is_over:
                self._turns.put_back(tenant, job)
            elif job.peer is not None and job.message is not None:
                self._served(tenant, job.peer, job.message)

    def _slice(self, job: _Job) -> bool:
        """Whether the job is over."""
        if job.steps is None:
            assert job.peer is not None
            assert job.message is not None
            job.steps = self._serve(job.peer, job.message)
            if job.steps is None:
                return True
        until = time.perf_counter() + SLICE_S
        return all(time.perf_counter() < until for _ in job.steps)

    def _served(self, tenant: str, peer: _Peer, message: Message) -> None:
        peer.num_queued -= 1
        peer.by_tenant[tenant] -= 1
        is_last = not peer.by_tenant[tenant]
        if is_last:
            del peer.by_tenant[tenant]
        if not peer.is_gone:
            with contextlib.suppress(PeerLost):
                peer.flow.served(tenant, cost_of_message(message), is_last=is_last)
                self._dirty.add(peer.flow)
        elif not peer.num_queued:
            self._drop(peer)

    def _fail(self, job: _Job, error: PierayError) -> None:
        ticket = getattr(job.message, "ticket", None)
        if job.peer is not None and ticket is not None and not isinstance(job.message, Telling):
            self._post(job.peer.flow, job.message.tenant, Failed(ticket, error.code, error.message))  # type: ignore[union-attr]

    def _serve(self, peer: _Peer, message: Message) -> Steps | None:
        """Serve at once, or return the steps in which to do it."""
        peer_id = peer.flow.conn.peer_id
        if isinstance(message, Asking):
            self._tell(self._asked(peer_id, message))
        elif isinstance(message, Telling):
            self._tell(self._told(peer_id, message))
        elif isinstance(message, Storing):
            return self._storing(peer.flow, message)
        return None

    def _asked(self, peer: str, message: Asking) -> list[Answer]:
        exchange = self._exchange
        if isinstance(message, Next):
            return exchange.next(Caller(peer, message.ticket, "", message.tenant), message.subscription)
        caller = Caller(peer, message.ticket, message.inferlet, message.tenant)
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

    def _storing(self, flow: Flow, message: Storing) -> Steps:
        answer: Message
        try:
            answer = Completed(message.ticket, (yield from self._in_store(message)))
        except PierayError as error:
            answer = Failed(message.ticket, error.code, error.message)
        except sqlite3.Error as error:
            log.exception("the store failed")
            answer = Failed(message.ticket, "internal", f"the key-value store failed: {error}")
        self._post(flow, message.tenant, answer)

    def _in_store(self, message: Storing) -> Generator[None, None, str | int | None]:
        store, tenant = self._store, message.tenant
        if isinstance(message, StoreGet):
            return store.get(tenant, message.key)
        if isinstance(message, StorePut):
            yield from store.putting(
                tenant, message.key, message.value, ttl_s=message.ttl_ms / 1e3, max_bytes=message.max_bytes
            )
            return None
        if isinstance(message, StorePutIf):
            expected = None if message.is_absent else message.expected
            return int((yield from store.putting_if(
                tenant, message.key, expected, message.value, max_bytes=message.max_bytes)))  # fmt: skip
        if isinstance(message, StoreDelete):
            return int(store.delete(tenant, message.key))
        return (yield from store.naming(tenant, message.prefix, message.max_bytes))

    def _dropping(self, peer: _Peer) -> Steps:
        peer_id = peer.flow.conn.peer_id
        for answers in self._exchange.dropping(peer_id):
            self._tell(answers)
            yield
        with self._wake:
            if self._peers.get(peer_id) is peer:
                del self._peers[peer_id]

    def _expire(self) -> None:
        now = time.monotonic()
        if (self._exchange.next_deadline() or math.inf) <= now:
            with self._books:
                self._tell(self._exchange.expire(now, MAX_EXPIRED))

    def _tell(self, answers: Iterable[Answer]) -> None:
        for caller, result in answers:
            peer = self._peers.get(caller.peer)
            if peer is None:
                continue
            if isinstance(result, PierayError):
                self._post(peer.flow, caller.tenant, Failed(caller.ticket, result.code, result.message))
            else:
                self._post(peer.flow, caller.tenant, Completed(caller.ticket, result))

    def _post(self, flow: Flow, tenant: str, message: Message) -> None:
        """To a peer that may just have died: what it had comes back when its connection closes."""
        with contextlib.suppress(PeerLost):
            flow.post(tenant, message)
            self._num_posted += cost_of_message(message)
            self._dirty.add(flow)

    def _flush(self) -> None:
        self._num_posted = 0
        while self._dirty:
            flow = self._dirty.pop()
            try:
                flow.flush()
            except PeerLost:
                log.debug("%s is gone; what it had comes back when its connection closes", flow.conn.peer_id)
            except BaseException as error:
                log.exception("answers to %s cannot be sent", flow.conn.peer_id)
                flow.conn.close(f"answers cannot be sent: {error!r}")

    # --- from outside ---------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Numbers of what is kept; the books are checked first, unless there is too much in them."""
        with self._books:
            if self._exchange.num_texts_at_most <= CHECKED_TEXTS:
                self._exchange.check()
            return {**self._exchange.status(), **self._store.status(), "peers": len(self._peers)}

    def close(self) -> None:
        """Stop; idempotent."""
        with self._wake:
            is_first, self._is_closed = not self._is_closed, True
            self._wake.notify_all()
        if is_first:
            with self._books:
                self._store.close()


def _deadline(timeout_ms: int) -> float:
    return time.monotonic() + timeout_ms / 1e3 if timeout_ms else -math.inf
