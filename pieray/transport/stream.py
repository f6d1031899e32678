"""A connection over a stream socket: one reader thread; a writer thread once the peer is slow, or for heartbeats."""

from __future__ import annotations

import itertools
import logging
import socket
import struct
import threading
from collections import deque

from pieray.errors import PeerLost
from pieray.transport.base import MAX_QUEUED_BYTES, Connection, Service
from pieray.transport.frames import HEARTBEAT, PREFIX, check_length
from pieray.transport.options import SocketOptions

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 16  # one read; larger frames get a buffer of their own
_WHOLE_BYTES = 1 << 17  # frames up to this size are copied behind their prefix: one system call
_WRITE_PARTS = 64  # queued frames in one system call of the writer
_BUFFER_BYTES = 1 << 20  # asked of the kernel for each direction
_BUSY = -(1 << 40)  # value of `_silent` while a handler runs: it is we who do not read then


class StreamConnection(Connection):
    """Owns a connected socket whose handshake is done.

    `send` writes at once when nothing is queued (one system call, no other thread); what the kernel does
    not take is queued, and a writer thread drains it.  With heartbeats (TCP) the writer also sends an
    empty frame when idle and counts how often it woke without the reader having heard anything: so a
    process that was itself frozen does not take its peer for dead.
    """

    def __init__(
        self,
        sock: socket.socket,
        service: Service,
        *,
        peer_id: str,
        role: str,
        incarnation: int,
        options: SocketOptions,
    ) -> None:
        super().__init__(service, peer_id=peer_id, role=role, incarnation=incarnation)
        self._sock = sock
        self._heartbeat_s = None if sock.family == socket.AF_UNIX else options.heartbeat_s
        self._max_silent = max(2, round(options.lost_after_s / options.heartbeat_s))
        self._silent = 0  # heartbeat intervals since the reader last heard the peer
        self._queue: deque[bytes | memoryview] = deque()  # while not empty, only the writer sends
        self._num_queued = 0
        self._wake = threading.Condition(self._lock)
        self._sent = threading.Condition(self._lock)  # told when the queue gets shorter
        self._writer: threading.Thread | None = None
        _configure(sock, self._heartbeat_s)

    def _prepare(self) -> None:
        if self._heartbeat_s is not None:
            with self._lock:
                self._start_writer()

    @property
    def num_unsent(self) -> int:
        return self._num_queued

    def wait_sent(self, num_bytes: int, timeout_s: float) -> int:
        with self._sent:
            self._sent.wait_for(lambda: self._num_queued <= num_bytes or not self.is_open, timeout_s)
            return self._num_queued

    # --- writing -------------------------------------------------------------------------------

    def _write(self, frame: bytes) -> None:
        prefix = PREFIX.pack(len(frame))
        if len(frame) <= _WHOLE_BYTES:
            self._write_part(prefix + frame)
        else:
            self._write_part(prefix)
            self._write_part(frame)

    def _write_part(self, part: bytes) -> None:
        if self._queue:
            if self._num_queued + len(part) > MAX_QUEUED_BYTES:
                raise self._too_slow(self._num_queued + len(part))
            self._enqueue(part)
            return
        try:
            sent = self._sock.send(part, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._give_up(f"{error.strerror or error!r}") from error
        if sent < len(part):
            self._enqueue(memoryview(part)[sent:])

    def _enqueue(self, part: bytes | memoryview) -> None:
        self._queue.append(part)
        self._num_queued += len(part)
        self._start_writer()
        self._wake.notify()

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_queued, name=f"pieray-write-{self.peer_id}", daemon=True)
            self._writer.start()

    def _write_queued(self) -> None:
        """The life of the writer thread."""
        while parts := self._next_parts():
            try:
                sent = self._sock.sendmsg(parts)
            except BlockingIOError:  # the kernel took nothing for a heartbeat interval
                self._count_silence()
            except OSError as error:
                self.close(f"{error.strerror or error!r}")
            except BaseException as error:
                log.exception("%r", self)
                self.close(f"internal error {error!r}")
            else:
                self._forget(sent)

    def _next_parts(self) -> list[bytes | memoryview]:
        """What to send next, waiting for it; [] when the connection is closed."""
        with self._wake:
            while self.is_open:
                if self._queue:
                    return list(itertools.islice(self._queue, _WRITE_PARTS))
                if not self._wake.wait(self._heartbeat_s):
                    self._beat()
            return []

    def _forget(self, sent: int) -> None:
        with self._lock:
            if not self.is_open:  # all is forgotten already
                return
            self._num_queued -= sent
            while self._queue and sent >= len(self._queue[0]):
                sent -= len(self._queue.popleft())
            if sent:
                self._queue[0] = memoryview(self._queue[0])[sent:]
            self._sent.notify_all()

    def _beat(self) -> None:
        """Nothing was queued for an interval."""
        self._count_silence_locked()
        try:
            if self.is_open:
                self._write_part(HEARTBEAT)
        except PeerLost:
            return

    def _count_silence(self) -> None:
        with self._lock:
            self._count_silence_locked()

    def _count_silence_locked(self) -> None:
        self._silent += 1
        if self._silent > self._max_silent and self._heartbeat_s is not None:
            self._close_locked(f"nothing was heard of the peer for {self._silent} intervals of {self._heartbeat_s} s")

    # --- reading -------------------------------------------------------------------------------

    def _read(self) -> None:
        buffer = bytearray(_READ_BYTES)
        view = memoryview(buffer)
        start = end = 0  # of what is read and not yet delivered
        while num_read := self._receive(view[end:]):
            end += num_read
            start = self._deliver_whole(view, start, end)
            if start == end:
                start = end = 0
            elif large := self._rest_of_large(view, start, end):
                self._deliver(memoryview(large))
                start = end = 0
            elif start:
                buffer[: end - start] = buffer[start:end]
                start, end = 0, end - start

    def _receive(self, space: memoryview) -> int:
        self._silent = 0
        num_read = self._sock.recv_into(space)
        self._silent = _BUSY
        return num_read

    def _deliver_whole(self, view: memoryview, start: int, end: int) -> int:
        """Deliver each frame that is complete in view[start:end]; the start of the first that is not."""
        while end - start >= PREFIX.size:
            (length,) = PREFIX.unpack_from(view, start)
            check_length(length)
            following = start + PREFIX.size + length
            if following > end:
                break
            if length:
                self._deliver(view[start + PREFIX.size : following])
            start = following
        return start

    def _rest_of_large(self, view: memoryview, start: int, end: int) -> bytearray | None:
        """The frame that begins at `start`, read to its end, if it does not fit into the buffer."""
        if end - start < PREFIX.size:
            return None
        (length,) = PREFIX.unpack_from(view, start)
        if length + PREFIX.size <= len(view):
            return None
        frame = bytearray(length)
        have = end - start - PREFIX.size
        frame[:have] = view[start + PREFIX.size : end]
        rest = memoryview(frame)
        while have < length:
            num_read = self._receive(rest[have:])
            if not num_read:
                raise PeerLost(f"the peer closed the connection {length - have} bytes before the end of a frame")
            have += num_read
        return frame

    # --- closing -------------------------------------------------------------------------------

    def _shut(self) -> None:
        self._queue.clear()
        self._num_queued = 0
        self._wake.notify_all()
        self._sent.notify_all()
        shut_down(self._sock)

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.join()
        with self._lock:
            self._sock.close()


def shut_down(sock: socket.socket) -> None:
    """Wake every thread that reads, writes or accepts on the socket; it stays open, so its number is not reused."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the peer was faster


def _configure(sock: socket.socket, heartbeat_s: float | None) -> None:
    """From the handshake's settings to blocking reads without a time limit."""
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if heartbeat_s is not None:
        seconds, fraction = divmod(heartbeat_s, 1.0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(fraction * 1e6)))
