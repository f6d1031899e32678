"""The thread that steps a BatcherCore: messages in from connections, answers out, nothing lost between."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from pieray.concurrency.pulse import Pulse
from pieray.errors import DeviceLost, PeerLost, PierayError
from pieray.messages import CancelInferlet, Completed, Message, RunEnded
from pieray.sched.core import BatcherCore
from pieray.sched.failures import failed
from pieray.sched.fences import FenceLink
from pieray.transport import Connection

log = logging.getLogger(__name__)


SLICE = 16
"""Messages of a peer that are taken in one turn."""
LEAST_TAKE_S = 1e-3
"""Messages are taken for so long between two steps, however short these are."""

Arrival = tuple[str, list[Message] | None, float]  # peer, its messages (None: it is gone), when they came
Later = Callable[[], list[tuple[str, Message]]]  # what another thread has prepared; answers


class StepLoop:
    """Serves InferletActors' connections.  The core is touched by the step thread alone.

    `on_failure` is called, on the step thread, when it ends other than by `close`: with DeviceLost when the device is
    dead, with anything else for a bug of ours.  Nobody would be answered any more, so it must end the process.
    """

    def __init__(self, core: BatcherCore, on_failure: Callable[[BaseException], None]) -> None:
        self._core = core
        self._on_failure = on_failure
        self._peers: dict[str, Connection] = {}
        self._fences: FenceLink | None = None
        self._inbox: SimpleQueue[Arrival | Later | None] = SimpleQueue()  # None: close
        self._waiting: OrderedDict[str, deque[tuple[list[Message] | Later | None, float]]] = OrderedDict()  # by peer
        self._pulse = Pulse()
        self._thread = threading.Thread(target=self._run, name="pieray-steps", daemon=True)
        core.plans.call_later = self._inbox.put
        core.adapters.send = core.images.send = self._answer
        core.images.on_seen = lambda *image: self._inbox.put(lambda: self._charge(*image))
        core.images.on_lost = lambda error: self._inbox.put(lambda: self._lose(error))
        core.adapters.on_lost = lambda error: self._inbox.put(lambda: self._lose(error))

    def start(self, fences: FenceLink) -> None:
        """Begin to step; fences of dead peers go to the resource manager."""
        self._fences = fences
        self._thread.start()

    def lose(self, peer_id: str) -> None:
        """The resource manager has lost this peer: it is dead here too, and fenced once more.  From any thread."""
        if (conn := self._peers.get(peer_id)) is not None:
            conn.close("the resource manager has lost this peer")  # `on_close` does the rest
        else:
            self._inbox.put((peer_id, None, time.monotonic()))

    def on_connect(self, conn: Connection) -> None:
        conn.on_refused = partial(_answer_refused, conn)
        self._peers[conn.peer_id] = conn

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, CancelInferlet):  # it has ended: megabytes may wait that nobody will read
                conn.drop_lane(message.inferlet)
        self._inbox.put((conn.peer_id, messages, time.monotonic()))

    def on_close(self, conn: Connection, _error: PeerLost) -> None:
        if self._peers.get(conn.peer_id) is conn:
            del self._peers[conn.peer_id]
        self._inbox.put((conn.peer_id, None, time.monotonic()))

    @property
    def busy_s(self) -> float:
        """How long the step thread has been at its present turn; 0 while it waits for work."""
        return self._pulse.busy_s

    def status(self) -> dict[str, Any]:
        """Facts of the core; `answer_bytes` wait for InferletActors that read more slowly than they are answered."""
        answer_bytes = sum(conn.num_waiting for conn in list(self._peers.values()))
        return {**self._core.stats(), "adapter_bytes": self._core.adapters.num_bytes, "answer_bytes": answer_bytes}

    def close(self) -> None:
        """Stop after the step in progress; idempotent."""
        self._core.plans.close()
        self._core.adapters.close()
        self._core.images.close()
        self._inbox.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            while self._take():
                if self._core.has_work:
                    self._pulse.begin()
                    self._answer(self._core.step(time.monotonic()))
                    self._core.sent()
                    self._pulse.end()
                if self._core.lost is not None:
                    log.critical("this batcher ends: %s", self._core.lost.message)
                    self._on_failure(self._core.lost)
                    return
        except BaseException as error:
            log.critical("the step loop failed", exc_info=error)
            self._on_failure(error)

    def _charge(self, key: tuple[str, int], tenant: str, seconds: float) -> list[tuple[str, Message]]:
        self._core.seen(key, tenant, seconds)
        return []

    def _lose(self, error: DeviceLost) -> list[tuple[str, Message]]:
        answers: list[tuple[str, Message]] = []
        self._core.lose(error, answers)
        return answers

    def _take(self) -> bool:
        """Take what has come, waiting while there is nothing to do or the cohort is worth it; False: close.

        While there is work, no more of it is taken between two steps than takes half as long as one, each peer's in
        order and the peers in turn.
        """
        limit = time.monotonic() + max(LEAST_TAKE_S, self._core.step_s / 2)
        while True:
            while self._waiting:
                self._take_slice()
                if self._core.lost is not None or (self._core.has_work and time.monotonic() >= limit):
                    return True
            wait_s = self._core.wait_s(time.monotonic()) if self._core.has_work else None
            try:
                arrival = self._inbox.get(block=wait_s != 0, timeout=wait_s)
                while True:
                    if arrival is None:
                        return False
                    self._sort_in(arrival)
                    arrival = self._inbox.get(block=False)
            except Empty:
                if not self._waiting:
                    return True

    def _sort_in(self, arrival: Arrival | Later) -> None:
        peer_id, messages, came = ("", arrival, 0.0) if callable(arrival) else arrival
        if messages is None:  # it is gone, with all that it has sent
            self._waiting.pop(peer_id, None)
        self._waiting.setdefault(peer_id, deque()).append((messages, came))

    def _take_slice(self) -> None:
        """The next messages of the peer whose turn it is."""
        self._pulse.begin()
        peer_id, waiting = next(iter(self._waiting.items()))
        messages, came = waiting.popleft()
        if messages is None:
            self._core.drop_peer(peer_id)
            if self._fences is not None:
                self._fences.fenced(peer_id)
        elif callable(messages):
            self._answer(messages())
        else:
            if len(messages) > SLICE:
                waiting.appendleft((messages[SLICE:], came))
            self._answer(self._core.submit(peer_id, messages[:SLICE], came))
        if waiting:
            self._waiting.move_to_end(peer_id)
        else:
            del self._waiting[peer_id]
        self._pulse.end()

    def _answer(self, answers: list[tuple[str, Message]]) -> None:
        """One frame to each peer; each inferlet's answers in a lane of its own, so that bulk is in nobody's way."""
        by_peer: dict[str, dict[int, list[Message]]] = {}
        for peer_id, message in answers:
            by_peer.setdefault(peer_id, {}).setdefault(_inferlet_of(message), []).append(message)
        for peer_id, by_inferlet in by_peer.items():
            conn = self._peers.get(peer_id)
            if conn is None:
                continue
            try:
                for inferlet, messages in by_inferlet.items():
                    conn.post(messages, lane=inferlet)
                conn.flush()
            except PeerLost:
                log.debug("%s is gone; its answers are dropped", peer_id)


def _inferlet_of(answer: Message) -> int:
    """The sender's number for it, which its tickets begin with; 0 for what is of many, and for all about runs: of those
    the last word must not overtake what was said before."""
    ticket: int = 0 if isinstance(answer, RunEnded) else getattr(answer, "ticket", 0)
    return ticket >> 32


def _answer_refused(conn: Connection, message: Message, error: PierayError) -> None:
    """A result that cannot travel (it is larger than a frame) fails alone."""
    if isinstance(message, Completed):
        conn.send([failed(message.ticket, error)], lane=_inferlet_of(message))
