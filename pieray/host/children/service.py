"""Launching children: through the Controller, then over a client's connection to the actor that hosts the child."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from pieray.client.link import ActorLink, ActorLinks
from pieray.concurrency.fair_pool import FairPool
from pieray.concurrency.timers import Timers
from pieray.config import Limits
from pieray.errors import Cancelled, ChildCeiling, DeadlineExceeded, EngineError, PierayError, QuotaExceeded
from pieray.messages import Launch
from pieray.transport import Endpoint

if TYPE_CHECKING:
    from pieray.host.children.family import Child, Link

log = logging.getLogger(__name__)

THREADS = 32
"""For launches of children, most of which wait for a place then; they are made as they are needed."""
RETRY_S = 0.2
WAIT_S = 60.0
"""For a thread to launch it: tenants, and parents, take turns."""
ANSWER_S = 10.0
"""How long a launch waits for room on a full engine."""


class Launcher(Protocol):
    """The way to the Controller.  Both may block."""

    def launch(self, message: Launch) -> Endpoint:
        """Start an inferlet; the endpoint of its actor.  ChildCeiling: no room at present."""
        ...

    def kill(self, instance_id: str, reason: str) -> None:
        """Raises NotFound, EngineError."""


class ChildService:
    """Thread-safe.  One for all inferlets of an actor: they share its connections and threads."""

    def __init__(
        self,
        launcher: Launcher,
        ceiling: Limits,
        *,
        peer_id: str,
        token: str,
        timers: Timers,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.ceiling = ceiling
        """The engine's limits: a launch says what differs from them."""
        self._launcher = launcher
        self._timers = timers
        self._answer_s = answer_s
        self._links = ActorLinks(peer_id=f"{peer_id}/parents", token=token)
        self._pool = FairPool("launching children", THREADS)

    def launch(self, message: Launch, child: Child, done: Callable[[Link | PierayError], None]) -> None:
        """Launch, attach `child`, bind it to this actor's life; `done` is called once, on another thread."""
        self._submit(message, child, done, time.monotonic() + self._answer_s)

    def close(self) -> None:
        """Hang up: children that are bound end.  Idempotent."""
        self._pool.close()
        self._links.close()

    def _submit(
        self, message: Launch, child: Child, done: Callable[[Link | PierayError], None], deadline: float
    ) -> None:
        try:
            launching = self._pool.submit(
                lambda: self._work(message, child, done, deadline),
                tenant=message.tenant,
                owner=message.parent,
                wait_s=WAIT_S,
            )
        except Cancelled:
            done(EngineError("this InferletActor is closing"))
            return
        except QuotaExceeded as error:
            done(error)
            return
        launching.add_done_callback(lambda found: done(failed) if (failed := _error_of(found)) is not None else None)

    def _work(self, message: Launch, child: Child, done: Callable[[Link | PierayError], None], deadline: float) -> None:
        found: Link | PierayError
        try:
            found = self._launched(message, child)
        except ChildCeiling as error:
            if time.monotonic() < deadline and not child.is_unwanted:
                self._timers.at(time.monotonic() + RETRY_S, lambda: self._submit(message, child, done, deadline))
                return
            found = DeadlineExceeded(f"no room for a child within {self._answer_s} s; {error.message}")
        except PierayError as error:
            found = error
        except BaseException as error:
            log.exception("a child could not be launched")
            found = PierayError(f"{type(error).__name__}: {error}")
        done(found)

    def _launched(self, message: Launch, child: Child) -> ActorLink:
        endpoint = self._launcher.launch(message)
        try:
            link = self._links.get(endpoint, message.tenant)
            link.bind(child.id)
            link.attach(child)
        except BaseException:
            self._end_orphan(child.id)
            raise
        return link

    def _end_orphan(self, instance_id: str) -> None:
        try:
            self._launcher.kill(instance_id, "its parent could not attach to it")
        except PierayError as error:
            log.info("%s runs on until its actor misses its parent: %s", instance_id, error.message)


def _error_of(launching: Future[None]) -> PierayError | None:
    """Why no thread has taken it, if none has."""
    error = launching.exception()
    return error if isinstance(error, PierayError) else None


class Attachments:
    """In the actor that hosts them: which children and attached inferlets end with which connection.  Thread-safe.

    One that its parent or client does not bind within `wait_s` ends too: who launched it died before it could.
    """

    def __init__(self, timers: Timers, kill: Callable[[str, str], None], wait_s: float = 60.0) -> None:
        self._timers = timers
        self._kill = kill
        self._wait_s = wait_s
        self._unbound: set[str] = set()
        self._of_clients: set[str] = set()
        self._bound: dict[int, set[str]] = {}  # by connection
        self._lock = threading.Lock()

    def expect(self, instance_id: str, *, is_child: bool = True) -> None:
        """A child, or an inferlet that ends with its client, is launched."""
        with self._lock:
            self._unbound.add(instance_id)
            if not is_child:
                self._of_clients.add(instance_id)
        self._timers.at(time.monotonic() + self._wait_s, lambda: self._miss(instance_id))

    def bind(self, conn: int, instance_id: str, *, is_bound: bool) -> None:
        with self._lock:
            self._unbound.discard(instance_id)
            if is_bound:
                self._bound.setdefault(conn, set()).add(instance_id)
            else:
                self._bound.get(conn, set()).discard(instance_id)

    def ended(self, instance_id: str) -> None:
        """The inferlet has ended."""
        with self._lock:
            self._unbound.discard(instance_id)
            self._of_clients.discard(instance_id)
            for bound in self._bound.values():
                bound.discard(instance_id)

    def lost(self, conn: int) -> None:
        """The connection is closed."""
        with self._lock:
            bound = self._bound.pop(conn, set())
        for instance_id in bound:
            is_child = instance_id not in self._of_clients
            self._kill(instance_id, "the actor of its parent is gone" if is_child else "its client is gone")

    def _miss(self, instance_id: str) -> None:
        with self._lock:
            if instance_id not in self._unbound:
                return
            self._unbound.discard(instance_id)
        owner = "client" if instance_id in self._of_clients else "parent"
        self._kill(instance_id, f"its {owner} did not attach to it within {self._wait_s} s")
