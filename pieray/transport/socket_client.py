"""The connecting side of the socket transport."""

from __future__ import annotations

import socket
import time

from pieray.errors import DeadlineExceeded, PeerLost
from pieray.transport.base import Connection, Endpoint, Service
from pieray.transport.blocks import receive_block, receive_bytes, send_block, time_left
from pieray.transport.handshake import GREETING_BYTES, ClientHandshake
from pieray.transport.options import SocketOptions
from pieray.transport.stream import StreamConnection
from pieray.transport.unix_path import boot_id


def connect_socket(
    endpoint: Endpoint,
    service: Service,
    *,
    role: str,
    peer_id: str,
    token: str,
    timeout_s: float,
    options: SocketOptions,
) -> Connection:
    """A connection to a SocketListener; see `pieray.transport.connect`."""
    handshake = ClientHandshake(token, role=role, peer_id=peer_id)
    deadline = time.monotonic() + timeout_s
    try:
        sock = _open(endpoint, deadline)
    except TimeoutError as error:
        raise DeadlineExceeded(f"{endpoint.peer_id} did not answer within {timeout_s} s") from error
    try:
        _authenticate(sock, handshake, endpoint, deadline)
        connection = StreamConnection(
            sock, service, peer_id=endpoint.peer_id, role=role, incarnation=endpoint.incarnation, options=options
        )
    except TimeoutError as error:
        sock.close()
        raise DeadlineExceeded(f"{endpoint.peer_id} did not finish the handshake within {timeout_s} s") from error
    except OSError as error:
        sock.close()
        raise PeerLost(f"{endpoint.peer_id}: {error} (during the handshake)") from error
    except BaseException:
        sock.close()
        raise
    connection.start()
    return connection


def _authenticate(sock: socket.socket, handshake: ClientHandshake, endpoint: Endpoint, deadline: float) -> None:
    greeting = receive_bytes(sock, GREETING_BYTES, deadline)
    send_block(sock, handshake.answer(greeting), deadline)
    handshake.finish(receive_block(sock, deadline), endpoint)


def _open(endpoint: Endpoint, deadline: float) -> socket.socket:
    """The unix socket if it is of this host and takes us, else TCP.  Raises PeerLost or TimeoutError."""
    problem: Exception | str = "its unix socket is of another host, and it has no TCP port"
    if endpoint.unix_path and endpoint.boot_id and endpoint.boot_id == boot_id():
        try:
            return _open_unix(endpoint.unix_path, deadline)
        except OSError as error:
            problem = error
    if endpoint.port:
        try:
            return socket.create_connection((endpoint.host, endpoint.port), timeout=time_left(deadline))
        except TimeoutError:
            raise
        except OSError as error:
            problem = error
    where = endpoint.unix_path or "(no unix socket)", f"{endpoint.host}:{endpoint.port}"
    raise PeerLost(f"{endpoint.peer_id} is not reached at {where[0]} or {where[1]}: {problem}")


def _open_unix(path: str, deadline: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(time_left(deadline))
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock
