"""Flow control: a sender is never more than a window ahead of what its peer has taken in.

A connection closes when too much waits for a slow peer; here the rest waits in the sender instead, so that one
inferlet's long texts cost nobody the connection.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from pieray.errors import PeerLost
from pieray.messages import Credit, Message
from pieray.transport import Connection

WINDOW = 8 << 20
GRANT = WINDOW // 8
"""Credit is given in pieces of at least this."""
MESSAGE_COST = 256


def cost_of_message(message: Message) -> int:
    """What both ends count a message as, in about bytes."""
    texts: tuple[Any, ...] = tuple(getattr(message, name, "") for name in ("text", "value", "expected"))
    return MESSAGE_COST + sum(len(text) for text in texts if isinstance(text, str))


class Flow:
    """One end of a connection whose messages may be long.  Thread-safe."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self._waiting: deque[Message] = deque()
        self._ahead = 0  # sent, and no credit for it yet
        self._owed = 0  # received, and no credit given for it yet
        self._lock = threading.Lock()

    def post(self, message: Message) -> None:
        """Send with the next `flush`, or later when the peer has taken in enough.  Raises PeerLost."""
        with self._lock:
            if self._ahead > WINDOW:
                self._waiting.append(message)
            else:
                self._post(message)

    def _post(self, message: Message) -> None:
        self.conn.post([message])
        self._ahead += cost_of_message(message)

    def flush(self) -> None:
        """Raises PeerLost."""
        self.conn.flush()

    def received(self, messages: Sequence[Message]) -> list[Message]:
        """Take credit from what came and give it for what came; the messages that are not about that."""
        others = []
        with self._lock, contextlib.suppress(PeerLost):
            for message in messages:
                if isinstance(message, Credit):
                    self._ahead -= message.cost
                else:
                    others.append(message)
                    self._owed += cost_of_message(message)
            while self._waiting and self._ahead <= WINDOW:
                self._post(self._waiting.popleft())
            if self._owed >= GRANT:
                self.conn.post([Credit(self._owed)])
                self._owed = 0
        return others
