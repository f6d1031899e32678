"""The listening side of the socket transport: a unix socket for this host, a TCP port for all others."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable

from pieray.errors import EngineError, PeerLost, PierayError
from pieray.transport.base import Endpoint, Service
from pieray.transport.blocks import receive_block, send_block, send_bytes
from pieray.transport.handshake import ServerHandshake, check_token
from pieray.transport.options import SocketOptions
from pieray.transport.stream import StreamConnection, shut_down
from pieray.transport.unix_path import boot_id, listen_unix, remove_stale, socket_dir

_BACKLOG = 128

log = logging.getLogger(__name__)


class SocketListener:
    """Accepts on a unix socket and, if `host` is given, on a TCP port of that address.

    One thread accepts on each; each peer then has one thread, that authenticates it and later reads from
    it.  A peer that is not authenticated costs one thread and 4 KiB for `handshake_s`; no more than
    `max_half_open` of them are let in on each socket: the next ones wait in the kernel's queue.
    """

    def __init__(
        self,
        service: Service,
        *,
        peer_id: str,
        incarnation: int,
        token: str,
        host: str,
        port: int,
        runtime_dir: str | None,
        options: SocketOptions,
    ) -> None:
        check_token(token)
        self._service, self._token, self._options = service, token, options
        self._lock = threading.Lock()
        self._is_closed = False
        self._connections: weakref.WeakSet[StreamConnection] = weakref.WeakSet()
        directory = socket_dir(runtime_dir)
        remove_stale(directory)
        unix, self._path = listen_unix(directory, _BACKLOG)
        sockets = [unix]
        if host:
            try:
                sockets.append(_listen_tcp(host, port))
            except OSError as error:
                unix.close()
                self._path.unlink(missing_ok=True)
                raise EngineError(f"cannot listen on {host}:{port}: {error}") from error
        bound_port = sockets[-1].getsockname()[1] if host else 0
        self.endpoint = Endpoint("socket", peer_id, incarnation, boot_id(), os.fspath(self._path), host, bound_port)
        self._doors = [_Door(sock, self._admit, options.max_half_open) for sock in sockets]

    def close(self) -> None:
        """Accept no more, and close every connection that came through here.  Idempotent."""
        with self._lock:
            self._is_closed = True
            connections = list(self._connections)
        for door in self._doors:
            door.close()
        self._path.unlink(missing_ok=True)
        for connection in connections:
            connection.close("the listener was closed")

    def _admit(self, sock: socket.socket) -> StreamConnection:
        """Authenticate the peer behind the socket.  Raises PierayError or OSError if it is not let in."""
        deadline = time.monotonic() + self._options.handshake_s
        handshake = ServerHandshake(self._token)
        send_bytes(sock, handshake.greeting, deadline)
        try:
            hello = handshake.accept(receive_block(sock, deadline))
        except PierayError as error:
            with contextlib.suppress(OSError):
                send_block(sock, handshake.refusal(error), deadline)
            raise
        send_block(sock, handshake.welcome(self.endpoint.peer_id, self.endpoint.incarnation), deadline)
        connection = StreamConnection(
            sock,
            self._service,
            peer_id=hello.peer_id,
            role=hello.role,
            incarnation=self.endpoint.incarnation,
            options=self._options,
        )
        self._keep(connection)
        return connection

    def _keep(self, connection: StreamConnection) -> None:
        with self._lock:
            if self._is_closed:
                raise PeerLost("the listener was closed during the handshake")
            self._connections.add(connection)


class _Door:
    """One listening socket, its accepting thread, and the peers that are authenticating through it."""

    def __init__(self, sock: socket.socket, admit: Callable[[socket.socket], StreamConnection], limit: int) -> None:
        self._sock = sock
        self._admit = admit
        self._limit = limit
        self._changed = threading.Condition()  # guards the two below
        self._half_open: set[socket.socket] = set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._accept, name="pieray-accept", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop accepting, and hang up on peers that are still authenticating.  Idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            for sock in self._half_open:
                shut_down(sock)
        shut_down(self._sock)
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._sock.close()

    def _accept(self) -> None:
        while self._wait_for_room():
            try:
                sock, _ = self._sock.accept()
                self._let_in(sock)
            except (OSError, RuntimeError) as error:
                if not self._is_closed:
                    log.warning("accept: %s", error)
                    time.sleep(0.05)  # out of file numbers or threads: others must get to end some

    def _wait_for_room(self) -> bool:
        """False when the door is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or len(self._half_open) < self._limit)
            return not self._is_closed

    def _let_in(self, sock: socket.socket) -> None:
        with self._changed:
            if self._is_closed:
                sock.close()
                return
            self._half_open.add(sock)
        try:
            threading.Thread(target=self._serve, args=(sock,), name="pieray-read", daemon=True).start()
        except RuntimeError:
            self._leave(sock)
            sock.close()
            raise

    def _leave(self, sock: socket.socket) -> None:
        with self._changed:
            self._half_open.discard(sock)
            self._changed.notify_all()

    def _serve(self, sock: socket.socket) -> None:
        """The life of an accepted peer's thread."""
        connection = None
        try:
            connection = self._admit(sock)
        except (PierayError, OSError) as error:
            log.warning("a peer was not let in: %s", error)
        finally:
            self._leave(sock)
            if connection is None:
                sock.close()
        if connection is not None:
            connection.run()


def _listen_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
