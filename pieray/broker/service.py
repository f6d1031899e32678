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
from dataclasses import dataclass
from typing import Any, TypeAlias

from pieray.broker.buffer import Answer, Bounds
from pieray.broker.exchange import Exchange
from pieray.broker.flow import Flow, cost_of_message, tenant_of
from pieray.broker.requests import REQUESTS, Asking, Requests, Storing, Telling
from pieray.broker.store import Store
from pieray.broker.turns import Turns
from pieray.concurrency.deadlines import wait_s
from pieray.concurrency.pulse import PulsedLock
from pieray.errors import PeerLost, PierayError, ProtocolError
from pieray.messages import Completed, Credit, Failed, Message
from pieray.transport import Connection

log = logging.getLogger(__name__)

Steps: TypeAlias = Generator[None, None, None]

SLICE_S = 0.001
"""Of long work, before others have a turn."""
FLUSH_S = 0.001
"""How long answers may wait for others to travel with them while there is more to serve."""
FLUSH_COST = 1 << 16
"""How much of them."""
INLINE = 8
"""So many requests are served by the thread that has read them, if nothing else is under way: that spares a switch."""
MAX_TURNS = 10_000
"""Before the broker's own thread looks whether it is to end."""
MAX_EXPIRED = 64
"""Requests that are ended at their deadline between two turns."""
CHECKED_TEXTS = 10_000
"""Beyond as many texts `status` leaves the books unchecked: everybody would wait for that."""


@dataclass(eq=False, slots=True)
class _Peer:
    """One connection of one InferletActor."""

    flow: Flow
    num_queued: int = 0
    is_gone: bool = False


@dataclass(eq=False, slots=True)
class _Job:
    """A message of a peer, or work of the service's own that goes on in slices."""

    peer: _Peer | None
    message: Message | None
    steps: Steps | None = None


class BrokerService:
    """Thread-safe.  One thread at a time serves; tenants share its time (`Turns`), whatever each has in line.

    A peer that dies loses what it waits for and its subscriptions, once what it had sent is served.  A peer that
    connects anew, under the next generation of its name, is served behind what it had sent before.
    """

    def __init__(self, bounds: Bounds, store: Store) -> None:
        self._exchange = Exchange(bounds)
        self._store = store
        self._requests = Requests(self._exchange, store)
        self._peers: dict[str, _Peer] = {}
        self._turns: Turns[_Job] = Turns()
        self._wake = threading.Condition()  # guards peers and turns
        self._books = PulsedLock()  # guards exchange and store
        self._is_busy = False  # some thread serves: what is below is its own then
        self._dirty: set[Flow] = set()
        self._held: list[tuple[Flow, str, Completed | Failed]] = []  # answers that tell of what is to be committed
        self._num_posted = 0
        self._deadline = math.inf  # the next one of a request that waits
        self._awake_at = math.inf  # when the broker's own thread wakes by itself
        self._is_closed = False
        threading.Thread(target=self._run, name="pieray-broker", daemon=True).start()

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
                    self._turns.put(tenant_of(message), _Job(peer, message))
                else:
                    raise ProtocolError(f"a {conn.role} does not send {type(message).__name__} to a broker")
            is_mine = not self._is_busy and 0 < len(self._turns) <= INLINE
            if is_mine:
                self._is_busy = True
            elif not self._is_busy and self._turns:
                self._wake.notify()
        with contextlib.suppress(PeerLost):
            for credit in granted:
                peer.flow.credited(credit)
            if granted:
                peer.flow.flush()
        if is_mine:
            self._serve_line(INLINE)

    def _run(self) -> None:
        """The life of the broker's own thread: long lines, and deadlines."""
        while True:
            with self._wake:
                while self._is_busy or not (self._turns or self._deadline <= time.monotonic() or self._is_closed):
                    self._awake_at = math.inf if self._is_busy else self._deadline
                    self._wake.wait(None if self._awake_at == math.inf else wait_s(self._awake_at))
                if self._is_closed:
                    return
                self._is_busy, self._awake_at = True, math.inf
            try:
                self._serve_line(MAX_TURNS)
            except BaseException:
                log.exception("the Broker's thread goes on")

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

    # --- serving --------------------------------------------------------------------------------

    def _serve_line(self, num_turns: int) -> None:
        """Serve until nobody is in line, or for so many turns.  By one thread at a time: it has set `_is_busy`."""
        flushed_at = time.perf_counter()
        try:
            for _ in range(num_turns):
                with self._wake:
                    if not self._turns:
                        break
                    tenant, job = self._turns.take()
                flushed_at = self._turn(tenant, job, flushed_at)
            self._expire()
            self._flush()
        finally:
            with self._wake:
                self._is_busy = False
                self._deadline = self._exchange.next_deadline() or math.inf
                if self._turns or self._deadline < self._awake_at:
                    self._wake.notify()

    def _turn(self, tenant: str, job: _Job, flushed_at: float) -> float:
        """Work of one tenant for up to SLICE_S, or one piece that is longer; when answers were flushed last."""
        began = now = time.perf_counter()
        until = began + SLICE_S
        over: list[_Job] = []
        found: _Job | None = job
        with self._books:
            while found is not None:
                if not self._work(found, until):
                    break
                over.append(found)
                now = time.perf_counter()
                with self._wake:
                    found = self._turns.more(tenant) if now < until else None
        self._account(tenant, over)
        if now - flushed_at > FLUSH_S or self._num_posted > FLUSH_COST:
            self._expire()
            self._flush()
            flushed_at = time.perf_counter()
        with self._wake:
            if found is not None:
                self._turns.put_back(tenant, found)
            self._turns.charge(tenant, time.perf_counter() - began)
        return flushed_at

    def _work(self, job: _Job, until: float) -> bool:
        """Work on a job until that time; whether it is over."""
        try:
            if job.steps is None:
                assert job.peer is not None
                assert job.message is not None
                job.steps = self._serve(job.peer, job.message)
                if job.steps is None:
                    return True
            return all(time.perf_counter() < until for _ in job.steps)
        except BaseException as error:  # this thread serves all the others too
            log.exception("%s failed", type(job.message).__name__)
            self._fail(job, PierayError(f"the Broker failed: {type(error).__name__}: {error}"))
            return True

    def _account(self, tenant: str, over: list[_Job]) -> None:
        """These jobs are over: their senders may send more; one that is gone, and has sent no more, is dropped."""
        costs: dict[_Peer, int] = {}
        counts: Counter[_Peer] = Counter()
        for job in over:
            if job.peer is not None and job.message is not None:
                costs[job.peer] = costs.get(job.peer, 0) + cost_of_message(job.message)
                counts[job.peer] += 1
        for peer, cost in costs.items():
            with contextlib.suppress(PeerLost):
                if peer.flow.served(tenant, cost):
                    self._dirty.add(peer.flow)
            with self._wake:
                peer.num_queued -= counts[peer]
                if peer.is_gone and not peer.num_queued:
                    self._drop(peer)

    def _fail(self, job: _Job, error: PierayError) -> None:
        ticket = getattr(job.message, "ticket", None)
        if job.peer is not None and ticket is not None and not isinstance(job.message, Telling):
            self._post(job.peer.flow, tenant_of(job.message), Failed(ticket, error.code, error.message))  # type: ignore[arg-type]

    def _serve(self, peer: _Peer, message: Message) -> Steps | None:
        """Serve at once, or return the steps in which to do it."""
        peer_id = peer.flow.conn.peer_id
        if isinstance(message, Asking):
            self._tell(self._requests.ask(peer_id, message))
        elif isinstance(message, Telling):
            self._tell(self._requests.tell(peer_id, message))
        elif isinstance(message, Storing):
            return self._storing(peer.flow, message)
        return None

    def _storing(self, flow: Flow, message: Storing) -> Steps:
        answer: Completed | Failed
        try:
            answer = Completed(message.ticket, (yield from self._requests.store(message)))
        except PierayError as error:
            answer = Failed(message.ticket, error.code, error.message)
        except sqlite3.Error as error:
            log.exception("the store failed")
            answer = Failed(message.ticket, "internal", f"the key-value store failed: {error}")
        if self._store.is_changed:
            self._held.append((flow, message.tenant, answer))
            self._num_posted += cost_of_message(answer)
        else:
            self._post(flow, message.tenant, answer)

    def _commit(self) -> None:
        """Commit what was written to the store, for all who wrote at once, then post the answers that tell of it."""
        began = time.perf_counter()
        held, self._held = self._held, []
        failed: BaseException | None = None
        try:
            with self._books:
                self._store.commit()
        except BaseException as error:
            log.exception("the store failed")
            failed = error
        took_s = time.perf_counter() - began
        with self._wake:
            for tenant, count in Counter(tenant for _, tenant, _ in held).items():
                self._turns.charge(tenant, took_s * count / len(held))
        for flow, tenant, answer in held:
            if failed is not None:
                answer = Failed(answer.ticket, "internal", f"the key-value store failed: {failed}")  # noqa: PLW2901
            self._post(flow, tenant, answer)

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
            flow.post(message, tenant)
            self._num_posted += cost_of_message(message)
            self._dirty.add(flow)

    def _flush(self) -> None:
        if self._held:
            self._commit()
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

    @property
    def busy_s(self) -> float:
        """How long the turn at hand has lasted."""
        return self._books.busy_s

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
