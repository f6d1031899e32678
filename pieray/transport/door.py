"""One listening socket: accepts peers, authenticates them all on one thread, hands those that know the token on."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from pieray.errors import PeerLost, PierayError, ProtocolError
from pieray.messages import Hello, Welcome
from pieray.transport.frames import PREFIX
from pieray.transport.handshake import MAX_HANDSHAKE_BYTES, ServerHandshake
from pieray.transport.options import SocketOptions
from pieray.transport.stream import shut_down

_ACCEPTS = 16  # connections accepted in one turn; answers that have come meanwhile go first
_LOG_EVERY_S = 1.0

log = logging.getLogger(__name__)


class _HalfOpen:
    """A peer that has not proved yet that it knows the token.  It costs one socket and 4 KiB."""

    def __init__(self, sock: socket.socket, address: str, token: str, deadline: float) -> None:
        self.sock = sock
        self.address = address
        self.deadline = deadline
        self.handshake = ServerHandshake(token)
        self.received = bytearray()

    def read(self) -> bytes | None:
        """Take what has come: the whole answer, once it is there.  Raises PeerLost, ProtocolError, OSError."""
        wanted = PREFIX.size if len(self.received) < PREFIX.size else PREFIX.size + self._length()
        data = self.sock.recv(wanted - len(self.received))
        if not data:
            raise PeerLost("it closed the connection during the handshake")
        self.received += data
        if len(self.received) < PREFIX.size or len(self.received) < PREFIX.size + self._length():
            return None
        return bytes(self.received[PREFIX.size :])

    def _length(self) -> int:
        length: int = PREFIX.unpack_from(self.received)[0]
        if length > MAX_HANDSHAKE_BYTES:
            raise ProtocolError(f"a handshake block has at most {MAX_HANDSHAKE_BYTES} bytes; {length} were announced")
        return length

    def send(self, data: bytes) -> None:
        """A few bytes, for which a fresh socket has room.  Raises OSError."""
        if self.sock.send(data) != len(data):
            raise OSError("the peer does not read")


class Door:
    """Never full: past `max_half_open` peers that have not authenticated, one is hung up on for each that comes.

    That is one of the address which has the most of them, and there the one that has been silent for longest.  So idle
    or slow peers keep nobody waiting, and a flood from one address costs the peers of others nothing.
    """

    def __init__(
        self,
        sock: socket.socket,
        token: str,
        welcome: Welcome,
        options: SocketOptions,
        on_peer: Callable[[socket.socket, Hello], None],
    ) -> None:
        """`on_peer` is called with each peer that is let in, on a thread that is the peer's from then on, and closes
        the socket."""
        self._sock = sock
        self._token = token
        self._welcome = welcome
        self._options = options
        self._on_peer = on_peer
        self._is_closed = False
        self._peers: dict[socket.socket, _HalfOpen] = {}  # oldest first
        self._num_refused = 0
        self._logged_at = 0.0
        sock.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="pieray-accept", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop accepting, and hang up on peers that are still authenticating.  Idempotent."""
        self._is_closed = True
        shut_down(self._sock)  # wakes the thread
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._is_closed:
            try:
                self._turn()
            except BaseException as error:  # noqa: BLE001 - others are to be let in all the same
                if not self._is_closed:
                    log.warning("accept: %r", error)
                    time.sleep(0.05)  # out of file numbers, perhaps: others must get to end some
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._selector.close()
        self._sock.close()

    def _turn(self) -> None:
        """One round: answers that have come, then those whose time is over, then new peers."""
        soonest = next(iter(self._peers.values()), None)
        timeout_s = None if soonest is None else max(0.0, soonest.deadline - time.monotonic())
        is_knocked = False
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._sock:
                is_knocked = True
            elif isinstance(key.data, _HalfOpen):
                self._answered(key.data)
        now = time.monotonic()
        for peer in [peer for peer in self._peers.values() if peer.deadline <= now]:
            self._refuse(peer, f"it did not authenticate within {self._options.handshake_s} s")
        if is_knocked and not self._is_closed:
            self._accept()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except OSError:
                if self._peers:  # out of file numbers: one of those that nobody needs comes free
                    self._refuse(self._least_wanted(""), "the process is short of files")
                raise
            sock.setblocking(False)
            where = address[0] if isinstance(address, tuple) else ""
            if len(self._peers) >= self._options.max_half_open:
                self._refuse(self._least_wanted(where), f"{self._options.max_half_open} newer ones authenticate")
            peer = _HalfOpen(sock, where, self._token, time.monotonic() + self._options.handshake_s)
            self._peers[sock] = peer
            try:
                self._selector.register(sock, selectors.EVENT_READ, peer)
                peer.send(peer.handshake.greeting)
            except ConnectionError as error:
                self._miss(peer, str(error))
            except OSError as error:
                self._refuse(peer, str(error))

    def _least_wanted(self, newcomer: str) -> _HalfOpen:
        """Of the address with the most, the newcomer's counted too, the oldest that has said nothing, or the oldest."""
        counts = Counter(peer.address for peer in self._peers.values())
        if newcomer in counts:
            counts[newcomer] += 1
        most = max(counts.values())
        peers = [peer for peer in self._peers.values() if counts[peer.address] == most]
        return next((peer for peer in peers if not peer.received), peers[0])

    def _answered(self, peer: _HalfOpen) -> None:
        try:
            answer = peer.read()
            if answer is None:
                return
            hello = peer.handshake.accept(answer)
            block = peer.handshake.welcome(self._welcome)
            peer.send(PREFIX.pack(len(block)) + block)
        except (PeerLost, ConnectionError) as error:
            self._miss(peer, str(error))
        except PierayError as error:
            with contextlib.suppress(OSError):
                block = peer.handshake.refusal(error)
                peer.send(PREFIX.pack(len(block)) + block)
            self._refuse(peer, error.message)
        except OSError as error:
            self._refuse(peer, str(error))
        else:
            self._let_in(peer, hello)

    def _let_in(self, peer: _HalfOpen, hello: Hello) -> None:
        self._forget(peer)
        peer.sock.setblocking(True)
        try:
            threading.Thread(target=self._on_peer, args=(peer.sock, hello), name="pieray-read", daemon=True).start()
        except RuntimeError as error:  # out of threads
            peer.sock.close()
            log.warning("%s: %s", hello.peer_id, error)

    def _miss(self, peer: _HalfOpen, reason: str) -> None:
        """It went away by itself: it died, or was told that it is not needed any more."""
        self._drop(peer)
        log.debug("a peer left during the handshake: %s", reason)

    def _refuse(self, peer: _HalfOpen, reason: str) -> None:
        self._drop(peer)
        self._num_refused += 1
        if (now := time.monotonic()) - self._logged_at > _LOG_EVERY_S:
            log.warning("%d peers were not let in; the last: %s", self._num_refused, reason)
            self._num_refused, self._logged_at = 0, now

    def _drop(self, peer: _HalfOpen) -> None:
        self._forget(peer)
        peer.sock.close()

    def _forget(self, peer: _HalfOpen) -> None:
        self._peers.pop(peer.sock, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(peer.sock)
