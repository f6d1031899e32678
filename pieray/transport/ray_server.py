"""The listening side of the Ray transport: frames that peers push and poll by plain actor calls.

A peer has at most one push in flight, so frames stay in order in an actor with many threads; one push or
poll carries all frames that wait, so the price of a Ray call is shared by them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict

from pieray.errors import ConfigError, PeerLost, PierayError
from pieray.messages import Hello, Welcome
from pieray.transport.base import MAX_QUEUED_BYTES, Connection, Endpoint, Service
from pieray.transport.frames import FrameQueue, joined, split
from pieray.transport.handshake import ServerHandshake, check_token

#: Frames of up to so many bytes travel in one call.
CALL_BYTES = 8 << 20
#: A push waits (a poll interval at most) while more than this has not been handled.
_BACKLOG_BYTES = 1 << 20
_MAX_HALF_OPEN = 32


class RayEndpointMixin:
    """The methods that `connect` calls on an actor whose endpoint is of kind "ray"; its base class.

    The actor sets `transport_listener` to a RayListener.  It must be a *threaded* actor: each connection
    keeps one thread in `transport_poll` and at times one in `transport_push`, so its max_concurrency (or
    that of the concurrency group that the endpoint names) is at least 2 x connections + 2, besides what
    the actor's own methods need.  It needs max_task_retries=0 (the default): a poll that Ray repeats
    would lose frames.
    """

    transport_listener: RayListener | None = None

    def transport_greet(self) -> tuple[int, bytes]:
        """Open a handshake: its number, and the greeting."""
        return self._transport().greet()

    def transport_open(self, handshake_id: int, answer: bytes) -> tuple[int, bytes]:
        """Finish it: the connection's number (0: refused), and the last block of the handshake."""
        return self._transport().open(handshake_id, answer)

    def transport_push(self, conn_id: int, stream: bytes) -> bool:
        """Deliver frames of the peer; False if the connection is over."""
        return self._transport().push(conn_id, stream)

    def transport_poll(self, conn_id: int, timeout_s: float) -> bytes | None:
        """Frames for the peer, b"" if none came in time, None if the connection is over."""
        return self._transport().poll(conn_id, timeout_s)

    def transport_close(self, conn_id: int) -> None:
        """The peer has closed the connection."""
        self._transport().hang_up(conn_id)

    def _transport(self) -> RayListener:
        if self.transport_listener is None:
            raise PeerLost("this actor does not listen (yet)")
        return self.transport_listener


class RayListener:
    """Connections by Ray calls; lives in an actor with RayEndpointMixin, imports no Ray if told its name.

    A peer that has not polled for `lost_after_s` is lost: Ray does not tell an actor that a caller died.
    """

    def __init__(
        self,
        service: Service,
        *,
        peer_id: str,
        incarnation: int,
        token: str,
        actor: str = "",
        namespace: str = "",
        concurrency_group: str = "",
        lost_after_s: float = 10.0,
    ) -> None:
        check_token(token)
        self._service, self._token, self._lost_after_s = service, token, lost_after_s
        if not actor:
            actor, namespace = _own_name()
        self.endpoint = Endpoint(
            "ray", peer_id, incarnation, actor=actor, namespace=namespace, concurrency_group=concurrency_group
        )
        self._lock = threading.Lock()
        self._is_closed = False
        self._ids = itertools.count(1)
        self._handshakes: OrderedDict[int, ServerHandshake] = OrderedDict()
        self._connections: dict[int, RayServerConnection] = {}

    def greet(self) -> tuple[int, bytes]:
        """See RayEndpointMixin.  The oldest of too many open handshakes is forgotten."""
        handshake = ServerHandshake(self._token)
        with self._lock:
            handshake_id = next(self._ids)
            self._handshakes[handshake_id] = handshake
            if len(self._handshakes) > _MAX_HALF_OPEN:
                self._handshakes.popitem(last=False)
        return handshake_id, handshake.greeting

    def open(self, handshake_id: int, answer: bytes) -> tuple[int, bytes]:
        """See RayEndpointMixin."""
        with self._lock:
            handshake = self._handshakes.pop(handshake_id, None)
        if handshake is None:
            raise PeerLost(f"handshake {handshake_id} is over, or was given up for newer ones")
        try:
            hello = handshake.accept(answer)
        except PierayError as error:
            return 0, handshake.refusal(error)
        return self._adopt(hello), handshake.welcome(Welcome(self.endpoint.peer_id, self.endpoint.incarnation))

    def push(self, conn_id: int, stream: bytes) -> bool:
        """See RayEndpointMixin."""
        connection = self._connections.get(conn_id)
        return connection is not None and connection.push(stream)

    def poll(self, conn_id: int, timeout_s: float) -> bytes | None:
        """See RayEndpointMixin."""
        connection = self._connections.get(conn_id)
        return None if connection is None else connection.poll(min(timeout_s, self._lost_after_s / 2))

    def hang_up(self, conn_id: int) -> None:
        """See RayEndpointMixin."""
        connection = self._connections.get(conn_id)
        if connection is not None:
            connection.hang_up()

    def close(self) -> None:
        """Accept no more, and close every connection that came through here.  Idempotent."""
        with self._lock:
            self._is_closed = True
            self._handshakes.clear()
            connections = list(self._connections.values())
        for connection in connections:
            connection.close("the listener was closed")

    def forget(self, conn_id: int) -> None:
        """The connection is over."""
        with self._lock:
            self._connections.pop(conn_id, None)

    def _adopt(self, hello: Hello) -> int:
        with self._lock:
            if self._is_closed:
                raise PeerLost(f"{self.endpoint.peer_id}: the listener was closed")
            conn_id = next(self._ids)
            connection = RayServerConnection(self._service, self, conn_id, hello, self._lost_after_s)
            self._connections[conn_id] = connection
        threading.Thread(target=connection.run, name=f"pieray-read-{hello.peer_id}", daemon=True).start()
        return conn_id


class RayServerConnection(Connection):
    """The actor's end: what is pushed waits for the reader thread, what is sent waits for a poll."""

    def __init__(
        self, service: Service, listener: RayListener, conn_id: int, hello: Hello, lost_after_s: float
    ) -> None:
        super().__init__(service, peer_id=hello.peer_id, role=hello.role, incarnation=listener.endpoint.incarnation)
        self._listener, self._conn_id, self._lost_after_s = listener, conn_id, lost_after_s
        self._inbox = FrameQueue(MAX_QUEUED_BYTES)
        self._outbox = FrameQueue(MAX_QUEUED_BYTES)
        self._num_polls = 0  # under way
        self._polled_at = time.monotonic()

    def push(self, stream: bytes) -> bool:
        """Take frames of the peer; it sends no more until this returns."""
        self._inbox.wait_below(_BACKLOG_BYTES, self._lost_after_s / 2)
        try:
            for frame in split(stream):
                if not self._inbox.put(bytes(frame)):
                    self.close("frames came faster than they were handled")
                    return False
        except PierayError as error:
            self.close(error.message)
        return self.is_open

    def poll(self, timeout_s: float) -> bytes | None:
        """What was sent; b"" if nothing was in time, None if the connection is over and drained."""
        self._num_polls += 1
        try:
            frames = self._outbox.take(max_bytes=CALL_BYTES, timeout_s=timeout_s)
        finally:
            self._polled_at = time.monotonic()
            self._num_polls -= 1
        if frames:
            return joined(frames)
        return None if self._outbox.is_closed else b""

    def hang_up(self) -> None:
        """The peer has closed; what it pushed before is still delivered."""
        self._inbox.close()

    @property
    def num_unsent(self) -> int:
        return self._outbox.num_bytes

    def wait_sent(self, num_bytes: int, timeout_s: float) -> int:
        self._outbox.wait_below(num_bytes, timeout_s)
        return self._outbox.num_bytes

    def _write(self, frame: bytes) -> None:
        if not self._outbox.put(frame):
            raise self._too_slow(self._outbox.num_bytes + len(frame))

    def _read(self) -> None:
        while True:
            frames = self._inbox.take(max_bytes=_BACKLOG_BYTES, timeout_s=self._lost_after_s / 4)
            if not frames and self._inbox.is_closed:
                return
            for frame in frames:
                self._deliver(frame)
            silent_s = time.monotonic() - self._polled_at
            if not self._num_polls and silent_s > self._lost_after_s:
                raise PeerLost(f"the peer has not polled for {silent_s:.1f} s")

    def _shut(self) -> None:
        self._inbox.close(drop=True)
        self._outbox.close()

    def _release(self) -> None:
        self._listener.forget(self._conn_id)


def _own_name() -> tuple[str, str]:
    import ray  # here: the listener itself works without

    context = ray.get_runtime_context()
    name = context.get_actor_name()
    if not name:
        raise ConfigError("an actor that listens by Ray calls needs a name: its peers find it by that")
    namespaces = [a["namespace"] for a in ray.util.list_named_actors(all_namespaces=True) if a["name"] == name]
    for namespace in namespaces:  # the context knows the namespace of the job, which may be another
        if len(namespaces) == 1 or ray.get_actor(name, namespace)._actor_id.hex() == context.get_actor_id():
            return name, namespace
    raise ConfigError(f"actor {name!r} is not among the named actors of its cluster")
