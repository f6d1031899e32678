"""The connecting side of the Ray transport: one thread polls, one pushes all that waits in one call."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any, Protocol

import ray
import ray.exceptions

from pieray.errors import DeadlineExceeded, PeerLost
from pieray.transport.base import MAX_QUEUED_BYTES, Connection, Endpoint, Service
from pieray.transport.frames import FrameQueue, joined, split
from pieray.transport.handshake import ClientHandshake
from pieray.transport.ray_server import CALL_BYTES

log = logging.getLogger(__name__)

_POLL_S = 5.0
_CALL_S = 60.0  # an actor that does not answer a call of ours for so long is lost


class Peer(Protocol):
    """The actor at the other end: what RayConnection needs of a handle."""

    def ask(self, method: str, *args: Any, timeout_s: float) -> Any:
        """Call and wait.  Raises PeerLost if the actor is gone, DeadlineExceeded."""

    def tell(self, method: str, *args: Any) -> None:
        """Call and forget."""


class RayPeer:
    """A Peer behind a Ray actor handle."""

    def __init__(self, handle: Any, peer_id: str, concurrency_group: str) -> None:
        self._handle, self._peer_id = handle, peer_id
        self._options = {"concurrency_group": concurrency_group} if concurrency_group else {}

    def ask(self, method: str, *args: Any, timeout_s: float) -> Any:
        """See Peer."""
        try:
            return ray.get(self._call(method, args), timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise DeadlineExceeded(f"{self._peer_id} did not answer {method} within {timeout_s} s") from error
        except ray.exceptions.RayTaskError as error:
            raise PeerLost(f"{self._peer_id} failed in {method}: {error.cause!r}") from error
        except ray.exceptions.RayError as error:
            text = str(error).partition("\n")[0]
            raise PeerLost(f"{self._peer_id}: {type(error).__name__}: {text}") from error

    def tell(self, method: str, *args: Any) -> None:
        """See Peer."""
        with contextlib.suppress(ray.exceptions.RayError, PeerLost):
            self._call(method, args)

    def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        if not ray.is_initialized():
            raise PeerLost(f"{self._peer_id}: Ray is shut down")
        bound = getattr(self._handle, method)
        return (bound.options(**self._options) if self._options else bound).remote(*args)


class RayConnection(Connection):
    """The caller's end.  The death of the actor ends the poll under way, and so the connection."""

    def __init__(self, peer: Peer, conn_id: int, service: Service, *, peer_id: str, role: str, incarnation: int):
        super().__init__(service, peer_id=peer_id, role=role, incarnation=incarnation)
        self._peer, self._conn_id = peer, conn_id
        self._outbox = FrameQueue(MAX_QUEUED_BYTES)

    def _prepare(self) -> None:
        threading.Thread(target=self._push_all, name=f"pieray-push-{self.peer_id}", daemon=True).start()

    @property
    def num_unsent(self) -> int:
        return self._outbox.num_bytes

    def wait_sent(self, num_bytes: int, timeout_s: float) -> int:
        self._outbox.wait_below(num_bytes, timeout_s)
        return self._outbox.num_bytes

    def _write(self, frame: bytes) -> None:
        if not self._outbox.put(frame):
            raise self._too_slow(self._outbox.num_bytes + len(frame))

    def _push_all(self) -> None:
        """The life of the pushing thread; it ends by telling the actor, which ends the poll under way."""
        try:
            while frames := self._outbox.take(max_bytes=CALL_BYTES, timeout_s=None):
                if not self._peer.ask("transport_push", self._conn_id, joined(frames), timeout_s=_CALL_S):
                    self.close("the peer closed the connection")
                    return
        except (PeerLost, DeadlineExceeded) as error:
            self.close(error.message)
        except BaseException as error:
            log.exception("%r", self)
            self.close(f"internal error {error!r}")
        self._peer.tell("transport_close", self._conn_id)

    def _read(self) -> None:
        while True:
            stream = self._peer.ask("transport_poll", self._conn_id, _POLL_S, timeout_s=_POLL_S + _CALL_S)
            if stream is None:
                return
            for frame in split(stream):
                self._deliver(frame)

    def _shut(self) -> None:
        self._outbox.close()


def connect_ray(
    endpoint: Endpoint, service: Service, *, role: str, peer_id: str, token: str, timeout_s: float
) -> Connection:
    """A connection to a RayListener, found by its actor's name; see `pieray.transport.connect`."""
    try:
        handle = ray.get_actor(endpoint.actor, namespace=endpoint.namespace or None)
    except ValueError as error:
        raise PeerLost(f"{endpoint.peer_id}: there is no actor {endpoint.actor!r} in {endpoint.namespace!r}") from error
    peer = RayPeer(handle, endpoint.peer_id, endpoint.concurrency_group)
    return connect_peer(peer, endpoint, service, role=role, peer_id=peer_id, token=token, timeout_s=timeout_s)


def connect_peer(
    peer: Peer, endpoint: Endpoint, service: Service, *, role: str, peer_id: str, token: str, timeout_s: float
) -> Connection:
    """A connection to the RayListener behind `peer`."""
    handshake = ClientHandshake(token, role=role, peer_id=peer_id)
    deadline = time.monotonic() + timeout_s
    handshake_id, greeting = peer.ask("transport_greet", timeout_s=timeout_s)
    answer = handshake.answer(greeting)
    left_s = max(0.001, deadline - time.monotonic())
    conn_id, last = peer.ask("transport_open", handshake_id, answer, timeout_s=left_s)
    try:
        handshake.finish(last, endpoint)
    except Exception:
        peer.tell("transport_close", conn_id)
        raise
    connection = RayConnection(
        peer, conn_id, service, peer_id=endpoint.peer_id, role=role, incarnation=endpoint.incarnation
    )
    connection.start()
    return connection
