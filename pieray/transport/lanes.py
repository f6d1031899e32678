"""Bulk over a connection: in parts, lane by lane, as fast as the peer reads."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from pieray.errors import PeerLost, PierayError
from pieray.messages import Message, size_of

log = logging.getLogger(__name__)

BULK_BYTES = 64 << 10
"""Messages of one lane that are given at once and have more than this in all are bulk."""
PART_BYTES = 256 << 10
"""Of a lane's messages, handed to the connection in one turn; a larger message is a part of its own."""
WINDOW_BYTES = 256 << 10
"""No further part is handed on while more than this waits in the connection: others wait behind so much at most."""
CONGESTED_BYTES = 1 << 20
"""While more than this waits in the connection, small messages take their turns in lanes too."""
STALLED_S = 10.0
"""A peer that has read nothing for so long is hung up on, once more than `stalled_bytes` wait for it."""


class Road(Protocol):
    """The connection underneath."""

    def send_part(self, messages: Sequence[Message]) -> None:
        """Send as one frame, never waiting.  Raises PeerLost, InvalidRequest."""

    @property
    def num_unsent(self) -> int:
        """Bytes that wait in the connection."""

    def wait_sent(self, num_bytes: int, timeout_s: float) -> int:
        """Wait until at most `num_bytes` wait in the connection, it closes, or the time is over; bytes that wait."""

    def stall(self, num_bytes: int) -> None:
        """Hang up on a peer that does not read."""


Refused = Callable[[Message, PierayError], None]
"""Told of a message that cannot travel, on the sending thread."""


class Lanes:
    """What waits to be sent, by lane.  Thread-safe.

    Messages of one lane keep their order.  Lanes take turns, a part each, so that a lane of a hundred megabytes delays
    the others by one part.  A sending thread lives while anything waits.
    """

    def __init__(self, road: Road, name: str, refused: Refused, stalled_bytes: int) -> None:
        self._road = road
        self._name = name
        self._refused = refused
        self._stalled_bytes = stalled_bytes
        self._lanes: OrderedDict[Hashable, deque[tuple[Message, int]]] = OrderedDict()  # in order of turns
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._is_running = False
        self._is_closed = False

    @property
    def num_bytes(self) -> int:
        """About how many bytes wait here."""
        return self._num_bytes

    def takes(self, lane: Hashable, messages: Sequence[Message]) -> bool:
        """Keep the messages, if they are bulk or their lane has some waiting; False: they may be sent at once."""
        sizes = [size_of(message) for message in messages]
        num_bytes = sum(sizes)
        is_bulk = num_bytes > BULK_BYTES or self._road.num_unsent > CONGESTED_BYTES
        if not is_bulk and not self._lanes:
            return False
        with self._lock:
            if self._is_closed or not (is_bulk or lane in self._lanes):
                return False
            self._lanes.setdefault(lane, deque()).extend(zip(messages, sizes, strict=True))
            self._num_bytes += num_bytes
            if not self._is_running:
                self._is_running = True
                self._start()
        return True

    def holds(self, lane: Hashable) -> bool:
        """Whether it would keep a small message of that lane."""
        return lane in self._lanes or self._road.num_unsent > CONGESTED_BYTES

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name=f"pieray-lanes-{self._name}", daemon=True).start()
        except BaseException:  # out of threads: whoever sends next tries again
            self._is_running = False
            raise

    def drop(self, lane: Hashable) -> None:
        """Forget what waits in the lane."""
        with self._lock:
            if (waiting := self._lanes.get(lane)) is not None:
                self._num_bytes -= sum(size for _, size in waiting)
                waiting.clear()  # the lane stays until its part under way is sent: what comes next keeps behind it

    def close(self) -> None:
        """Forget all; idempotent."""
        with self._lock:
            self._is_closed = True
            self._lanes.clear()
            self._num_bytes = 0

    def _run(self) -> None:
        try:
            while (turn := self._next()) is not None:
                self._send(*turn)
                self._end_turn(turn[0])
        except PeerLost:
            self.close()
        except BaseException:
            log.exception("the lanes of %s failed", self._name)
            self._road.stall(self._num_bytes)

    def _next(self) -> tuple[Hashable, list[Message]] | None:
        """The part whose turn it is, when the connection has room; None when nothing waits."""
        self._wait_for_room()
        with self._lock:
            while self._lanes:
                lane, waiting = next(iter(self._lanes.items()))
                part: list[Message] = []
                num_bytes = 0
                while waiting and (not part or num_bytes + waiting[0][1] <= PART_BYTES):
                    message, size = waiting.popleft()
                    part.append(message)
                    num_bytes += size
                self._num_bytes -= num_bytes
                if part:
                    return lane, part
                del self._lanes[lane]
            self._is_running = False
            return None

    def _end_turn(self, lane: Hashable) -> None:
        with self._lock:
            if lane in self._lanes:
                if self._lanes[lane]:
                    self._lanes.move_to_end(lane)
                else:
                    del self._lanes[lane]

    def _wait_for_room(self) -> None:
        num_before, since = -1, time.monotonic()
        while (num_queued := self._road.wait_sent(WINDOW_BYTES, 1.0)) > WINDOW_BYTES and not self._is_closed:
            if num_queued != num_before:
                num_before, since = num_queued, time.monotonic()
            elif time.monotonic() - since > STALLED_S and num_queued + self._num_bytes > self._stalled_bytes:
                self._road.stall(num_queued + self._num_bytes)
                return

    def _send(self, lane: Hashable, part: list[Message]) -> None:
        try:
            self._road.send_part(part)
        except PeerLost:
            raise
        except PierayError as error:
            if len(part) == 1:
                self._refused(part[0], error)
            else:  # too large are only messages that travel alone
                log.exception("%s: a message to lane %s cannot be encoded", self._name, lane)
