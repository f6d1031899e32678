"""The connecting side of the socket transport."""

from __future__ import annotations

import socket
import time

from pieray.errors import DeadlineExceeded, PeerLost
from pieray.messages import Welcome
from pieray.transport.base import Connection, Endpoint, Service
from pieray.transport.blocks import receive_block, receive_bytes, send_block, time_left
from pieray.transport.handshake import GREETING_BYTES, ClientHandshake
from pieray.transport.options import SocketOptions
from pieray.transport.stream import StreamConnection
from pieray.transport.unix_path import boot_id

RETRY_S = 0.05
"""Before a listener is tried again that has hung up during the handshake."""


def connect_socket(
    endpoint: Endpoint,
    service: Service,
    *,
    role: str,
    peer_id: str,
    token: str,
    timeout_s: float,
    options: SocketOptions | None,
) -> Connection:
    """A connection to a SocketListener; see `pieray.transport.connect`."""
    deadline = time.monotonic() + timeout_s
    hung_up: PeerLost | None = None
    while True:
        handshake = ClientHandshake(token, role=role, peer_id=peer_id)
        try:
            sock, welcome = _authenticated(handshake, endpoint, deadline)
            break
        except _HungUpError as error:  # the listener may have had too many peers at its door
            hung_up = PeerLost(f"{endpoint.peer_id}: {error} (during the handshake)")
        except TimeoutError as error:
            if hung_up is not None:
                raise hung_up from error
            raise DeadlineExceeded(f"{endpoint.peer_id} did not finish the handshake within {timeout_s} s") from error
        if time.monotonic() + RETRY_S >= deadline:
            raise hung_up
        time.sleep(RETRY_S)
    options = options or SocketOptions(heartbeat_s=welcome.heartbeat_s, lost_after_s=welcome.lost_after_s)
    try:
        connection = StreamConnection(
            sock, service, peer_id=endpoint.peer_id, role=role, incarnation=endpoint.incarnation, options=options
        )
    except OSError as error:
        sock.close()
        raise PeerLost(f"{endpoint.peer_id}: {error} (behind the handshake)") from error
    connection.start()
    return connection


class _HungUpError(Exception):
    """The other end has closed the connection before the handshake was over."""


def _authenticated(handshake: ClientHandshake, endpoint: Endpoint, deadline: float) -> tuple[socket.socket, Welcome]:
    """A socket whose handshake is done, and the listener's word.

    Raises _HungUpError, TimeoutError, and as `ClientHandshake.finish`.
    """
    sock = _open(endpoint, deadline)
    try:
        greeting = receive_bytes(sock, GREETING_BYTES, deadline)
        send_block(sock, handshake.answer(greeting), deadline)
        last = receive_block(sock, deadline)
    except TimeoutError:
        sock.close()
        raise
    except (OSError, PeerLost) as error:
        sock.close()
        raise _HungUpError(str(error)) from error
    except BaseException:
        sock.close()
        raise
    try:
        return sock, handshake.finish(last, endpoint)
    except BaseException:
        sock.close()
        raise


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
