"""Connections between threads of one process: the same frames and the same threads, no sockets."""

from __future__ import annotations

import secrets
import threading
import weakref

from pieray.errors import PeerLost
from pieray.messages import Welcome
from pieray.transport.base import MAX_QUEUED_BYTES, Connection, Endpoint, Service
from pieray.transport.frames import FrameQueue
from pieray.transport.handshake import ClientHandshake, ServerHandshake, check_token

#: What a port number is to the kernel: listeners of this process by the name in their endpoint.
_LISTENERS: weakref.WeakValueDictionary[str, InprocListener] = weakref.WeakValueDictionary()

_TAKE_BYTES = 1 << 20


class InprocConnection(Connection):
    """One end of a pair; each reads from a queue that the other fills."""

    def __init__(
        self, service: Service, *, peer_id: str, role: str, incarnation: int, inbox: FrameQueue, outbox: FrameQueue
    ) -> None:
        super().__init__(service, peer_id=peer_id, role=role, incarnation=incarnation)
        self._inbox = inbox
        self._outbox = outbox

    @property
    def num_unsent(self) -> int:
        return self._outbox.num_bytes

    def wait_sent(self, num_bytes: int, timeout_s: float) -> int:
        self._outbox.wait_below(num_bytes, timeout_s)
        return self._outbox.num_bytes

    def _write(self, frame: bytes) -> None:
        if self._outbox.put(frame):
            return
        if self._outbox.is_closed:
            raise self._give_up("the peer closed the connection")
        raise self._too_slow(self._outbox.num_bytes + len(frame))

    def _read(self) -> None:
        while frames := self._inbox.take(max_bytes=_TAKE_BYTES, timeout_s=None):
            for frame in frames:
                self._deliver(frame)

    def _shut(self) -> None:
        self._inbox.close(drop=True)
        self._outbox.close()


class InprocListener:
    """Found by `connect` in the same process only."""

    def __init__(self, service: Service, *, peer_id: str, incarnation: int, token: str) -> None:
        check_token(token)
        self._service, self._token = service, token
        self._lock = threading.Lock()
        self._is_closed = False
        self._connections: weakref.WeakSet[InprocConnection] = weakref.WeakSet()
        self.endpoint = Endpoint("inproc", peer_id, incarnation, actor=secrets.token_hex(8))
        _LISTENERS[self.endpoint.actor] = self

    def close(self) -> None:
        """Accept no more, and close every connection that came through here.  Idempotent."""
        with self._lock:
            self._is_closed = True
            connections = list(self._connections)
        _LISTENERS.pop(self.endpoint.actor, None)
        for connection in connections:
            connection.close("the listener was closed")

    def admit(
        self, service: Service, handshake: ClientHandshake, endpoint: Endpoint, *, role: str, peer_id: str
    ) -> InprocConnection:
        """The connecting end of a new pair, whose other end is served already."""
        server = ServerHandshake(self._token)
        server.accept(handshake.answer(server.greeting))
        handshake.finish(server.welcome(Welcome(self.endpoint.peer_id, self.endpoint.incarnation)), endpoint)
        there, here = FrameQueue(MAX_QUEUED_BYTES), FrameQueue(MAX_QUEUED_BYTES)
        incarnation = self.endpoint.incarnation
        far = InprocConnection(
            self._service, peer_id=peer_id, role=role, incarnation=incarnation, inbox=there, outbox=here
        )
        near = InprocConnection(
            service, peer_id=self.endpoint.peer_id, role=role, incarnation=incarnation, inbox=here, outbox=there
        )
        with self._lock:
            if self._is_closed:
                raise PeerLost(f"{self.endpoint.peer_id}: the listener was closed")
            self._connections.add(far)
        threading.Thread(target=far.run, name=f"pieray-read-{peer_id}", daemon=True).start()
        return near


def connect_inproc(endpoint: Endpoint, service: Service, *, role: str, peer_id: str, token: str) -> Connection:
    """A connection to an InprocListener; see `pieray.transport.connect`."""
    handshake = ClientHandshake(token, role=role, peer_id=peer_id)
    listener = _LISTENERS.get(endpoint.actor)
    if listener is None:
        raise PeerLost(f"{endpoint.peer_id} does not listen in this process (any more)")
    connection = listener.admit(service, handshake, endpoint, role=role, peer_id=peer_id)
    connection.start()
    return connection
