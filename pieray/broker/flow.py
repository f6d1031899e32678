"""Flow control: each tenant's messages have a window of their own, and never wait behind another tenant's.

A connection closes when too much waits for a slow peer; here the rest waits in the sender instead.  A window counts
what the peer has not *served* yet, so that the peer too has no more than that of any tenant before it.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pieray.messages import Credit, Message
from pieray.transport import Connection

WINDOW = 8 << 20
"""Of all tenants of a connection together, in about bytes; the first GRANT of each does not count."""
TENANT_WINDOW = 128 << 10
"""Of one; a single message may be larger."""
GRANT = TENANT_WINDOW // 4
"""Credit is given in pieces of at least this."""
MESSAGE_COST = 256


def cost_of_message(message: Message) -> int:
    """What both ends count a message as, in about bytes."""
    texts: tuple[Any, ...] = tuple(getattr(message, name, "") for name in ("text", "value", "expected"))
    return MESSAGE_COST + sum(len(text) for text in texts if isinstance(text, str))


def tenant_of(message: Message) -> str:
    """Whose request it is."""
    tenant: str = message.tenant  # type: ignore[attr-defined]  # all requests have one
    return tenant


@dataclass(slots=True)
class _Lane:
    """One tenant's messages over one connection."""

    waiting: deque[Message] = field(default_factory=deque)
    ahead: int = 0  # sent, and no credit for it yet
    owed: int = 0  # served, and no credit given for it yet
    last: int = 0  # number of the message sent last


class Flow:
    """One end of a connection.  Thread-safe; each tenant's messages keep their order."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self._lanes: dict[str, _Lane] = {}
        self._num_sent = 0
        self._excess = 0  # of what is ahead, beyond GRANT of each tenant
        self._lock = threading.Lock()

    def post(self, message: Message, tenant: str | None = None) -> None:
        """Send with the next `flush`, or later when the peer has served enough of the tenant's (by default, of the one
        that the message names).  Raises PeerLost."""
        with self._lock:
            lane = self._lane(tenant_of(message) if tenant is None else tenant)
            if lane.waiting or lane.ahead > TENANT_WINDOW or self._excess > WINDOW:
                lane.waiting.append(message)
            else:
                self._post(lane, message)

    def flush(self) -> None:
        """Raises PeerLost."""
        self.conn.flush()

    def credited(self, credit: Credit) -> None:
        """The peer has served so much: what waits may follow.  Raises PeerLost."""
        with self._lock:
            self._advance(self._lane(credit.tenant), -credit.cost)
            while self._excess <= WINDOW and (lane := self._next()) is not None:
                self._post(lane, lane.waiting.popleft())

    def served(self, tenant: str, cost: int) -> bool:
        """Messages of the peer have been served.  Whether it is given credit now.  Raises PeerLost."""
        with self._lock:
            lane = self._lane(tenant)
            lane.owed += cost
            if lane.owed < GRANT:
                return False
            owed, lane.owed = lane.owed, 0
            self.conn.post([Credit(tenant, owed)])
            return True

    def _lane(self, tenant: str) -> _Lane:
        lane = self._lanes.get(tenant)
        if lane is None:
            lane = self._lanes[tenant] = _Lane()
        return lane

    def _next(self) -> _Lane | None:
        """Of those that wait, and may send, the one with the least on its way; among equals, they take turns."""
        ready = [lane for lane in self._lanes.values() if lane.waiting and lane.ahead <= TENANT_WINDOW]
        return min(ready, key=lambda lane: (lane.ahead, lane.last), default=None)

    def _post(self, lane: _Lane, message: Message) -> None:
        self.conn.post([message])
        self._num_sent += 1
        lane.last = self._num_sent
        self._advance(lane, cost_of_message(message))

    def _advance(self, lane: _Lane, cost: int) -> None:
        before = max(lane.ahead - GRANT, 0)
        lane.ahead += cost
        self._excess += max(lane.ahead - GRANT, 0) - before
