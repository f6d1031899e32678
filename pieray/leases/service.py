"""The heart of a ResourceManager actor: leases and exports, over connections.  No Ray, no tensors."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pieray.concurrency.pulse import PulsedLock
from pieray.errors import DeviceLost, PeerLost, PierayError, ProtocolError
from pieray.leases import export_calls
from pieray.leases.exports import ExportTable, PinShares
from pieray.leases.ledger import Holder, Lease, PageLedger
from pieray.leases.news import News
from pieray.leases.queue import Granted, LeaseQueue, Refused
from pieray.leases.rank import Facts, Ranks
from pieray.leases.relief import Relief
from pieray.leases.tenants import TenantCounts
from pieray.messages import (
    CloseLease,
    Completed,
    ExportPages,
    Failed,
    FencePeer,
    ImportPages,
    IndexPages,
    LeasePages,
    ListExports,
    Message,
    OpenLease,
    PeerFenced,
    Preempt,
    Preempted,
    Reclaimed,
    ReclaimSpare,
    ReleasePages,
    Unexport,
)
from pieray.messages.leases import HASH_BYTES, Place
from pieray.transport import Connection

log = logging.getLogger(__name__)

RECLAIM_EVERY_S = 0.1
"""How often peers are asked for spare pages while requests wait: more may have come to be spare."""
RECLAIM_LEAST_S = 0.01
"""How often at most, for requests that have just come."""
RECLAIM_ANSWER_S = 0.05
"""How long programs keep their pages at most while a peer has not said what is spare."""
RELIEVE_LEAST_S = 0.002
"""How often at most it is looked for programs that might give up their pages."""

BATCHER_AWAY_S = 30.0
"""How long the batcher may be away before it counts as dead: its link may have broken, or its process been frozen."""


def _nothing() -> None: ...


class LeaseService:
    """Serves InferletActors (leases, exports) and the Batcher (fences).  Thread-safe; one lock guards the ledger.

    While the batcher is away, pages of dead peers stay quarantined: a step of its may touch them.  When it is back it
    is asked for all the fences that are missing.  Exports and the index end with the batcher, for good: what their
    pages held is gone with it.  `on_failure` is called when the batcher has stayed away, and for bugs of ours: the
    process must end.
    """

    def __init__(
        self,
        num_pages: int,
        *,
        pins: PinShares | None = None,
        on_failure: Callable[[], None] = _nothing,
        batcher_away_s: float = BATCHER_AWAY_S,
        weight_of: Callable[[str], float] = lambda _: 1.0,
        quota_of: Callable[[str], int] = lambda _: 0,
        news_s: float = 0.0,
    ) -> None:
        """`weight_of`: a tenant's weight in shares of the pool; `quota_of`: the pages that it may hold, 0 for all.
        `news_s`: so often InferletActors are told what is here and how many programs are, if it has changed; 0: never,
        as there is no other group that programs might choose."""
        self._ledger = PageLedger(num_pages)
        self._ranks = Ranks(self._ledger, weight_of)
        self._line = LeaseQueue(self._ledger, self._ranks, quota_of)
        self._relief = Relief(self._ledger, self._line)
        self._idle: set[Holder] = set()  # as far as the last reclaim has told
        self._unanswered: set[str] = set()  # peers that have not answered the last reclaim
        self._exports = ExportTable(self._ledger, pins)
        self._is_batcher_lost = False
        self._peers: dict[str, Connection] = {}
        self._fenced: set[str] = set()  # peers that the batcher has fenced, and whose connection is not closed yet
        self._batcher: Connection | None = None
        self._on_failure = on_failure
        self._batcher_away_s = batcher_away_s
        self._batcher_error = "it has not connected yet"
        self._has_batcher = False  # has had one: before that no step can touch a page
        self._batcher_lost_at: float | None = None  # unless it comes back before
        self._reclaimed_at = self._relieved_at = -RECLAIM_EVERY_S
        self._num_waited = self._num_preempted = 0
        self._counts = TenantCounts()
        self._lock = PulsedLock()
        self._wake = threading.Condition(self._lock)  # type: ignore[arg-type]  # all that it needs of a lock
        self._is_closed = False
        self._news: News | None = None
        if news_s:
            self.tell_news(news_s)
        threading.Thread(target=self._watch_deadlines, name="pieray-lease-deadlines", daemon=True).start()

    def on_connect(self, conn: Connection) -> None:
        with self._lock:
            if conn.role == "batcher":
                if self._is_batcher_lost:
                    raise PeerLost(f"{conn.peer_id} was away for over {self._batcher_away_s} s and counts as dead")
                self._batcher, self._has_batcher = conn, True
                self._batcher_lost_at, self._batcher_error = None, ""
                for peer_id in self._ledger.dead_peers:
                    _post(conn, FencePeer(peer_id))
            else:
                self._peers[conn.peer_id] = conn
                self._fenced.discard(conn.peer_id)
                if self._news is not None:
                    _post(conn, self._news.whole())
        self._flush()

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        with self._lock:
            for message in messages:
                self._serve(conn, message)
            self._settle()
        self._flush()

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        with self._lock:
            if conn is self._batcher:
                self._batcher, self._batcher_error = None, error.message
                self._batcher_lost_at = time.monotonic() + self._batcher_away_s
                self._wake.notify()
            elif self._peers.get(conn.peer_id) is conn:
                del self._peers[conn.peer_id]
                self._unanswered.discard(conn.peer_id)
                self._line.drop_peer(conn.peer_id)
                self._relief.drop_peer(conn.peer_id)
                self._ranks.drop_peer(conn.peer_id)
                is_fenced = not self._has_batcher or conn.peer_id in self._fenced
                self._fenced.discard(conn.peer_id)
                self._ledger.drop_peer(conn.peer_id, fenced=is_fenced)
                if self._batcher is not None and conn.peer_id in self._ledger.dead_peers:
                    _post(self._batcher, FencePeer(conn.peer_id))
                log.info("%s is gone; %d pages await fences", conn.peer_id, self._ledger.num_quarantined)
            self._settle()
        self._flush()

    def _serve(self, conn: Connection, message: Message) -> None:
        if isinstance(message, PeerFenced) and conn.role == "batcher":
            self._fence(message.peer_id)
            return
        try:
            if isinstance(message, LeasePages):
                self._lease(conn, message)
            elif isinstance(message, ReleasePages):
                holder = Holder(conn.peer_id, message.inferlet)
                self._ledger.release(holder, np.frombuffer(message.pages, "<u4").tolist())
            elif isinstance(message, IndexPages):
                self._enter(conn, message)
            elif isinstance(message, OpenLease):
                facts = Facts(message.tenant, message.priority, message.deadline or math.inf, message.born)
                facts.family = message.family
                self._ranks.open(Holder(conn.peer_id, message.inferlet), facts)
            elif isinstance(message, CloseLease):
                holder = Holder(conn.peer_id, message.inferlet)
                self._line.cancel(holder)
                self._relief.close(holder)
                self._ledger.close(holder)
                self._ranks.close(holder)
            elif isinstance(message, Reclaimed):
                self._unanswered.discard(conn.peer_id)
                self._relieved_at = -math.inf
                idle = np.frombuffer(message.idle, "<u4").tolist()
                self._idle.update(Holder(conn.peer_id, inferlet) for inferlet in idle)
            elif isinstance(message, Preempted):
                holder = Holder(conn.peer_id, message.inferlet)
                self._relieved_at = -math.inf
                self._relief.answered(holder, time.monotonic(), is_whole=message.is_whole)
                self._num_preempted += message.num_pages > 0
                tenant = self._ranks.tenant_of(holder)
                self._counts.add(tenant, "preempted", message.num_pages > 0)
                self._counts.add(tenant, "swapped", message.num_pages)
            elif isinstance(message, (ExportPages, ImportPages, Unexport, ListExports)):
                self._serve_export(conn, message)
            else:
                raise ProtocolError(f"a {conn.role} does not send {type(message).__name__} to a resource manager")
        except PierayError as error:
            if (ticket := getattr(message, "ticket", None)) is None:
                raise
            _post(conn, Failed(ticket, error.code, error.message))

    def _fence(self, peer_id: str) -> None:
        """The batcher may know of a death before we do: what the peer still asks for would have no second fence."""
        self._line.drop_peer(peer_id)
        if peer_id in self._peers:
            self._fenced.add(peer_id)
        self._ledger.fence(peer_id)

    def _lease(self, conn: Connection, message: LeasePages) -> None:
        if conn.peer_id in self._fenced:
            raise PeerLost(f"the batcher has lost {conn.peer_id}; it leases no more")
        holder = Holder(conn.peer_id, message.inferlet)
        now = time.monotonic()
        self._ranks.served(holder, message.num_tokens)
        self._idle.discard(holder)
        lease = self._line.request(
            holder, message.ticket, message.count, now, message.deadline_s, _hashes(message.hashes), message.num_more
        )
        if lease is not None:
            self._counts.add(self._ranks.tenant_of(holder), "found", lease.num_found)
            _post(conn, _granted(message.ticket, lease))
            return
        if message.deadline_s > 0:
            self._num_waited += 1
            self._counts.add(self._ranks.tenant_of(holder), "waited")
            if now >= self._reclaimed_at + RECLAIM_LEAST_S and not self._unanswered:
                self._reclaim(now)

    def _enter(self, conn: Connection, message: IndexPages) -> None:
        if self._is_batcher_lost or conn.peer_id in self._fenced:
            return  # what it has written is gone, or will be given back
        pages, depths = (np.frombuffer(column, "<u4").tolist() for column in (message.pages, message.depths))
        places = list(map(Place, _hashes(message.hashes), _hashes(message.before), depths))
        self._ledger.enter(Holder(conn.peer_id, message.inferlet), pages, places)

    def _serve_export(self, conn: Connection, message: export_calls.ExportCall) -> None:
        if self._is_batcher_lost:
            raise DeviceLost("the batcher is gone, and all exports with it")
        if conn.peer_id in self._fenced:
            raise PeerLost(f"the batcher has lost {conn.peer_id}; it imports and exports no more")
        now = time.monotonic()
        self._exports.expire(now)
        value = export_calls.answer(self._exports, Holder(conn.peer_id, message.inferlet), message, now)
        _post(conn, Completed(message.ticket, value))
        if self._exports.next_expiry() is not None:
            self._wake.notify()

    def _reclaim(self, now: float) -> None:
        """Ask what is spare and who is idle; `_relieve` goes on with the answers."""
        self._reclaimed_at = now
        self._unanswered = set(self._peers)
        self._idle.clear()
        for peer in self._peers.values():
            _post(peer, ReclaimSpare(self._line.shortage))

    def _relieve(self, now: float) -> None:
        """Have programs give up pages for whoever goes first, once it is known what is spare."""
        is_early = self._unanswered and now < self._reclaimed_at + RECLAIM_ANSWER_S
        if not len(self._line) or is_early or now < self._relieved_at + RELIEVE_LEAST_S:
            return
        self._relieved_at = now
        chosen = self._relief.choose(now, self._idle)
        left = self._relief.left_to_others() if chosen else {}
        for holder in chosen:
            kept, shared = (
                np.asarray(pages, "<u4").tobytes() for pages in (self._ledger.kept_pages_of(holder), left[holder])
            )
            if (peer := self._peers.get(holder.peer_id)) is not None:
                _post(peer, Preempt(holder.inferlet, kept, shared))

    def _settle(self) -> None:
        """Serve and expire the line; called with the lock held."""
        now = time.monotonic()
        self._exports.expire(now)
        outcomes: list[Granted | Refused] = [*self._line.expire(now)]
        if self._line.shortage:
            self._exports.evict(self._line.shortage, now)
        outcomes += self._line.retry(now)
        for outcome in outcomes:
            if isinstance(outcome, Granted):
                self._counts.add(self._ranks.tenant_of(outcome.holder), "found", outcome.lease.num_found)
            conn = self._peers.get(outcome.holder.peer_id)
            if conn is not None:
                _post(conn, _answer(outcome))
        self._relieve(now)
        if len(self._line):
            self._wake.notify()

    def _flush(self) -> None:
        batcher = self._batcher
        for conn in (*self._peers.copy().values(), *([batcher] if batcher is not None else ())):
            try:
                conn.flush()
            except PeerLost:
                log.debug("%s is gone; its pages come back when its connection closes", conn.peer_id)

    def tell_news(self, every_s: float) -> None:
        """Tell InferletActors so often what is here and how many programs are, from now on; idempotent."""
        with self._lock:
            if self._news is not None:
                return
            self._news = news = News(self._ledger.index, self._exports, self._ranks)
            for conn in self._peers.values():
                _post(conn, news.whole())
        self._flush()
        threading.Thread(target=self._tell_news, args=(every_s,), name="pieray-lease-news", daemon=True).start()

    def _tell_news(self, every_s: float) -> None:
        assert self._news is not None
        try:
            while not self._is_closed:
                time.sleep(every_s)
                with self._lock:
                    if (news := self._news.take()) is not None:
                        for conn in self._peers.values():
                            _post(conn, news)
                if news is not None:
                    self._flush()
        except BaseException:
            log.exception("peers are told of the group no more: this resource manager ends")
            self._on_failure()

    def _watch_deadlines(self) -> None:
        try:
            self._watch()
        except BaseException:
            log.exception("deadlines are watched no more: this resource manager ends")
            self._on_failure()

    def _watch(self) -> None:
        while True:
            with self._wake:
                self._wake.wait(self._idle_s())
                if self._is_closed:
                    return
                now = time.monotonic()
                is_batcher_lost = self._batcher_lost_at is not None and now >= self._batcher_lost_at
                if is_batcher_lost:
                    self._batcher_lost_at, self._is_batcher_lost = None, True
                    self._exports.clear()
                    self._ledger.drop_index()
                self._settle()
                if len(self._line) and now >= self._reclaimed_at + RECLAIM_EVERY_S:
                    self._reclaim(now)
            self._flush()
            if is_batcher_lost:
                log.error("the batcher has been away for over %s s and counts as dead", self._batcher_away_s)
                self._on_failure()

    def _idle_s(self) -> float | None:
        """Until there is something to do: for those who wait, or an export expires; None: nothing to come."""
        deadline, expiry, now = self._line.next_deadline(), self._exports.next_expiry(), time.monotonic()
        waits = [] if deadline is None else [min(deadline - now, RECLAIM_ANSWER_S)]
        waits += [] if expiry is None else [min(expiry - now, threading.TIMEOUT_MAX)]
        waits += [] if self._batcher_lost_at is None else [self._batcher_lost_at - now]
        return max(0.0, min(waits)) if waits else None

    @property
    def busy_s(self) -> float:
        """How long somebody has been at work under the lock."""
        return self._lock.busy_s

    def exports(self) -> list[dict[str, Any]]:
        """Facts of every export: tenant, owner (its user), name, access, pages, tokens, pin, time left, importers."""
        with self._lock:
            now = time.monotonic()
            self._exports.expire(now)
            return export_calls.all_facts(self._exports, now)

    def drop_export(self, name: str, access: str, tenant: str, user: str) -> dict[str, Any]:
        """Take an export away, see `ExportTable.drop`; whose it was."""
        with self._lock:
            export = self._exports.drop(name, access=access, tenant=tenant, user=user)
            self._settle()
        self._flush()
        return {"name": export.name, "access": export.access, "tenant": export.owner.tenant, "owner": export.owner.user}

    def status(self) -> dict[str, Any]:
        """Pages by state, and how many requests wait; the books are checked first.

        `programs`: that have pages, or may ask for some.  `available`: free, or dropped for whoever asks.  `indexed`:
        known by their content, whoever has them.  `found`: those given by their content, ever.  `tenants`: see
        `TenantCounts`."""
        with self._lock:
            self._ledger.check()
            return {
                "total": self._ledger.total,
                "free": self._ledger.num_free,
                "leased": self._ledger.num_leased,
                "cached": self._ledger.num_cached,
                "quarantined": self._ledger.num_quarantined,
                "available": self._ledger.num_available,
                "indexed": self._ledger.num_indexed,
                "found": self._ledger.num_found,
                "waiting": len(self._line),
                "programs": self._ranks.num_programs,
                "tenants": self._counts.status(self._ranks.held_by_tenant(), self._line.num_waiting()),
                "waited": self._num_waited,
                "preempted": self._num_preempted,
                "exports": len(self._exports),
                "links": {"batcher": {"is_up": self._batcher is not None, "error": self._batcher_error}},
            }

    def close(self) -> None:
        """Stop; idempotent."""
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()


def _answer(outcome: Granted | Refused) -> Message:
    if isinstance(outcome, Granted):
        return _granted(outcome.ticket, outcome.lease)
    return Failed(outcome.ticket, outcome.error.code, outcome.error.message)


def _granted(ticket: int, lease: Lease) -> Message:
    return Completed(ticket, [np.asarray(lease.pages, "<u4").tobytes(), lease.num_found])


def _hashes(packed: bytes) -> list[bytes]:
    if len(packed) % HASH_BYTES:
        raise ProtocolError(f"hashes have {HASH_BYTES} bytes each; given {len(packed)}")
    return [packed[start : start + HASH_BYTES] for start in range(0, len(packed), HASH_BYTES)]


def _post(conn: Connection, message: Message) -> None:
    """Post to a peer that may just have died: its pages come back when its connection closes."""
    ticket = getattr(message, "ticket", None)
    with contextlib.suppress(PeerLost):  # answers by inferlet: texts of exports may be long
        conn.post([message], lane=None if ticket is None else ticket >> 32)
