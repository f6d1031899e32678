"""Blocks of the handshake on a socket: `u32` length and at most 4 KiB.  Every wait ends at the deadline."""

from __future__ import annotations

import socket

from pieray.concurrency.deadlines import wait_s
from pieray.errors import PeerLost, ProtocolError
from pieray.transport.frames import PREFIX
from pieray.transport.handshake import MAX_HANDSHAKE_BYTES


def time_left(deadline: float) -> float:
    """Seconds until the deadline (of time.monotonic).  Raises TimeoutError when there are none."""
    left = wait_s(deadline)
    if not left:
        raise TimeoutError("the deadline of the handshake has passed")
    return left


def send_bytes(sock: socket.socket, data: bytes, deadline: float) -> None:
    """Send all of the data."""
    sock.settimeout(time_left(deadline))
    sock.sendall(data)


def send_block(sock: socket.socket, data: bytes, deadline: float) -> None:
    """Send the data behind its length."""
    send_bytes(sock, PREFIX.pack(len(data)) + data, deadline)


def receive_bytes(sock: socket.socket, num_bytes: int, deadline: float) -> bytes:
    """Exactly so many bytes and not one more.  Raises PeerLost if the stream ends before."""
    data = b""
    while len(data) < num_bytes:
        sock.settimeout(time_left(deadline))
        more = sock.recv(num_bytes - len(data))
        if not more:
            raise PeerLost("the peer closed the connection during the handshake")
        data += more
    return data


def receive_block(sock: socket.socket, deadline: float) -> bytes:
    """What `send_block` sent.  Raises ProtocolError for a length over MAX_HANDSHAKE_BYTES."""
    (length,) = PREFIX.unpack(receive_bytes(sock, PREFIX.size, deadline))
    if length > MAX_HANDSHAKE_BYTES:
        raise ProtocolError(f"a handshake block has at most {MAX_HANDSHAKE_BYTES} bytes; {length} were announced")
    return receive_bytes(sock, length, deadline)
