"""The thread that steps a BatcherCore: messages in from connections, answers out, nothing lost between."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

from pieray.errors import PeerLost
from pieray.messages import Message, PeerFenced
from pieray.sched.core import BatcherCore
from pieray.transport import Connection

log = logging.getLogger(__name__)


class StepLoop:
    """Serves InferletActors' connections.  The core is touched by the step thread alone."""

    def __init__(self, core: BatcherCore) -> None:
        self._core = core
        self._peers: dict[str, Connection] = {}
        self._ledger: Connection | None = None
        self._inbox: deque[tuple[str, list[Message] | None, float]] = deque()  # None: the peer is gone
        self._arrived = threading.Event()
        self._is_closed = False
        self._dead: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="pieray-steps", daemon=True)

    def start(self, ledger: Connection) -> None:
        """Begin to step; fences of dead peers go to `ledger`."""
        self._ledger = ledger
        self._thread.start()

    def on_connect(self, conn: Connection) -> None:
        self._peers[conn.peer_id] = conn

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        self._inbox.append((conn.peer_id, messages, time.monotonic()))
        self._arrived.set()

    def on_close(self, conn: Connection, _error: PeerLost) -> None:
        if self._peers.get(conn.peer_id) is conn:
            del self._peers[conn.peer_id]
        self._inbox.append((conn.peer_id, None, time.monotonic()))
        self._arrived.set()

    def status(self) -> dict[str, Any]:
        return dict(self._core.stats())

    def close(self) -> None:
        """Stop after the step in progress; idempotent."""
        self._is_closed = True
        self._arrived.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._is_closed:
            self._drain()
            if not self._core.has_work:
                self._arrived.wait()
                self._arrived.clear()
                continue
            wait_s = self._core.wait_s(time.monotonic())
            if wait_s > 0:
                if self._arrived.wait(wait_s):
                    self._arrived.clear()
                continue
            self._answer(self._core.step(time.monotonic()))
            self._fence()

    def _drain(self) -> None:
        while self._inbox:
            peer_id, messages, came = self._inbox.popleft()
            if messages is None:
                self._dead.add(peer_id)
                self._fence()
            else:
                self._answer(self._core.submit(peer_id, messages, came))

    def _fence(self) -> None:
        """Tell the resource manager of dead peers whose pages no step touches any more."""
        for peer_id in list(self._dead):
            if self._core.drop_peer(peer_id) and self._ledger is not None:
                self._dead.discard(peer_id)
                try:
                    self._ledger.send([PeerFenced(peer_id)])
                except PeerLost:
                    log.info("the resource manager is gone; no fence for %s", peer_id)

    def _answer(self, answers: list[tuple[str, Message]]) -> None:
        by_peer: dict[str, list[Message]] = {}
        for peer_id, message in answers:
            by_peer.setdefault(peer_id, []).append(message)
        for peer_id, messages in by_peer.items():
            conn = self._peers.get(peer_id)
            try:
                if conn is not None:
                    conn.send(messages)
            except PeerLost:
                log.debug("%s is gone; its answers are dropped", peer_id)
