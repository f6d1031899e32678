"""The listening side of the socket transport: a unix socket for this host, a TCP port for all others."""

from __future__ import annotations

import logging
import os
import socket
import threading
import weakref

from pieray.errors import EngineError, PeerLost, PierayError
from pieray.messages import Hello, Welcome
from pieray.transport.base import Endpoint, Service
from pieray.transport.door import Door
from pieray.transport.handshake import check_token
from pieray.transport.options import SocketOptions
from pieray.transport.stream import StreamConnection
from pieray.transport.unix_path import boot_id, listen_unix, remove_stale, socket_dir

_BACKLOG = 128

log = logging.getLogger(__name__)


class SocketListener:
    """Accepts on a unix socket and, if `host` is given, on a TCP port of that address.

    One thread accepts on each and authenticates its peers (`Door`); each that is let in has a thread that reads.
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
        self._service, self._options = service, options
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
        welcome = Welcome(peer_id, incarnation, options.heartbeat_s, options.lost_after_s)
        self._doors = [Door(sock, token, welcome, options, self._serve) for sock in sockets]

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

    def _serve(self, sock: socket.socket, hello: Hello) -> None:
        """The life of the thread of a peer that was let in."""
        try:
            connection = StreamConnection(
                sock,
                self._service,
                peer_id=hello.peer_id,
                role=hello.role,
                incarnation=self.endpoint.incarnation,
                options=self._options,
            )
            self._keep(connection)
        except (PierayError, OSError) as error:
            sock.close()
            log.warning("%s: %s", hello.peer_id, error)
            return
        connection.run()

    def _keep(self, connection: StreamConnection) -> None:
        with self._lock:
            if self._is_closed:
                raise PeerLost("the listener was closed during the handshake")
            self._connections.add(connection)


def _listen_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
