"""The Batcher's link to its ResourceManager: fences of dead peers, asked for and told."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from pieray.errors import PeerLost
from pieray.messages import FencePeer, Message, PeerFenced
from pieray.transport import Connection, Service
from pieray.transport.redial import Redial

log = logging.getLogger(__name__)


class FenceLink:
    """Dialled again whenever it breaks.  Thread-safe.

    A fence that is told while the link is down is dropped: the ResourceManager asks for all that it lacks when the
    link is there again (`FencePeer`), so that none is lost and none is told twice to any effect.
    """

    def __init__(self, dial: Callable[[Service], Connection], on_wanted: Callable[[str], None]) -> None:
        """`dial` connects, with a deadline; `on_wanted` is told each peer that the ResourceManager wants fenced."""
        self._dial = dial
        self._on_wanted = on_wanted
        self._conn: Connection | None = None
        self._error = "it was not dialled yet"
        self._is_closed = False
        self._lock = threading.Lock()
        self._redial = Redial("resource-manager", self._dial_again)

    def open(self) -> None:
        """Connect for the first time.  Raises as `dial` does."""
        self._dial_again()

    def fenced(self, peer_id: str) -> None:
        """No step touches the peer's pages any more."""
        with contextlib.suppress(PeerLost):
            if (conn := self._conn) is not None:
                conn.send([PeerFenced(peer_id)])

    def status(self) -> dict[str, Any]:
        """Whether the link is up; if not, why."""
        conn = self._conn
        is_up = conn is not None and conn.is_open
        return {"is_up": is_up, "error": "" if is_up else self._redial.error or self._error}

    def close(self) -> None:
        """Hang up and dial no more; idempotent."""
        self._redial.close()
        with self._lock:
            self._is_closed = True
            conn, self._conn = self._conn, None
        if conn is not None:
            conn.close("this Batcher is closing")

    def _dial_again(self) -> None:
        if self._is_closed or (self._conn is not None and self._conn.is_open):
            return
        conn = self._dial(self)
        if not conn.is_open:
            raise PeerLost("the ResourceManager hung up")
        if self._is_closed:
            conn.close("this Batcher is closing")

    def on_connect(self, conn: Connection) -> None:
        with self._lock:  # before anything of it is delivered: fences that are asked for at once go out on this one
            self._conn = conn

    def on_messages(self, _conn: Connection, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, FencePeer):
                self._on_wanted(message.peer_id)
            else:
                log.warning("the ResourceManager sent %s, which a Batcher does not take", type(message).__name__)

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        with self._lock:
            if self._is_closed or self._conn is not conn:
                return
            self._error = error.message
        log.warning("the link to the ResourceManager broke and is dialled again: %s", error)
        self._redial.start()
