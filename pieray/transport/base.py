"""What every transport promises: `Connection`, `Service`, `Listener`, `Endpoint`."""

from __future__ import annotations

import abc
import dataclasses
import logging
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pieray.errors import PeerLost, PierayError, ProtocolError
from pieray.messages import Message, decode
from pieray.transport.frames import frames_of
from pieray.transport.lanes import Lanes, Refused

#: What may wait for a slow peer, beside lanes; more closes the connection.
MAX_QUEUED_BYTES = 64 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a listener is reached.  Plain data (`to_wire`), so that it travels through any Ray handle."""

    kind: str  # "socket", "ray" or "inproc"
    peer_id: str  # of the listener: who answers under another name is not the one we look for
    incarnation: int  # of the listener: a restarted actor has a new endpoint
    boot_id: str = ""  # of the listener's host; equal ids mean that `unix_path` may be used
    unix_path: str = ""
    host: str = ""
    port: int = 0
    actor: str = ""  # "ray": name of the actor
    namespace: str = ""  # "ray"
    concurrency_group: str = ""  # "ray": of the actor's `transport_*` methods; "" is its default group

    def to_wire(self) -> tuple[str | int, ...]:
        """The fields in order; msgpack and pickle both take them."""
        return dataclasses.astuple(self)

    @classmethod
    def from_wire(cls, fields: Sequence[Any]) -> Endpoint:
        """The endpoint that `to_wire` gave.  Raises ProtocolError for anything else."""
        wanted = dataclasses.fields(cls)
        if len(fields) != len(wanted):
            raise ProtocolError(f"an endpoint has {len(wanted)} fields; {len(fields)} came")
        for field, value in zip(wanted, fields, strict=True):
            if type(value).__name__ != field.type:
                raise ProtocolError(f"endpoint field {field.name!r} is {field.type}; {value!r} came")
        return cls(*fields)


class Service(Protocol):
    """What a process does with its connections.  All calls for one connection come one at a time, in order.

    They come on the connection's reader thread (the client's `on_connect`: on the thread that called
    `connect`), so a call that waits for an answer over the same connection would wait for itself.
    """

    def on_connect(self, conn: Connection) -> None:
        """The peer has proved who it is; nothing of it was delivered yet."""

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        """The messages of one frame.  An exception is logged and closes this connection, nothing else."""

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        """The connection is over; called exactly once, after the last `on_messages`."""


class Listener(Protocol):
    """A door that peers connect to."""

    @property
    def endpoint(self) -> Endpoint:
        """Where peers reach it."""

    def close(self) -> None:
        """Accept no more, and close every connection that came through here.  Idempotent."""


class Connection(abc.ABC):
    """One end of a link between two processes; all methods may be called from any thread.

    Frames arrive whole, in order, at most once, or the connection closes.  Nothing is resent.

    Messages sent in a *lane* (an inferlet's, say) keep their order within it alone.  They may be of any size together:
    what is bulk travels in parts, lane by lane, as fast as the peer reads (`pieray.transport.lanes`), so that neither
    MAX_QUEUED_BYTES nor another lane's bulk is in their way.  One that cannot travel is told to `on_refused`.
    """

    def __init__(self, service: Service, *, peer_id: str, role: str, incarnation: int) -> None:
        self.peer_id = peer_id  # of the other end
        self.role = role  # as the connecting end gave it in its Hello: the same on both ends
        self.incarnation = incarnation  # of the listening end
        self._service = service
        self._lock = threading.Lock()  # guards sending and closing
        self._posted: list[Message] = []
        self._lost: PeerLost | None = None
        self._lanes = Lanes(self, peer_id, self._refuse, MAX_QUEUED_BYTES)
        self.on_refused: Refused = self._log_refused  # set by the service, in `on_connect`

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<{type(self).__name__} {self.role} peer={self.peer_id} incarnation={self.incarnation} {state}>"

    @property
    def is_open(self) -> bool:
        """False from the moment either end has closed, or the peer is known to be gone."""
        return self._lost is None

    def send(self, messages: Sequence[Message], *, lane: Hashable = None) -> None:
        """Send the messages, behind those posted before, as one frame; never waits for the peer.

        Raises PeerLost if the connection is closed, or if more than MAX_QUEUED_BYTES wait for a peer that
        reads too slowly (which closes it); InvalidRequest for a message that cannot be encoded or exceeds
        MAX_FRAME_BYTES: all others have been sent then.  With a lane, see above.
        """
        if lane is not None and self._keeps(lane, messages):
            self.flush()
            return
        with self._lock:
            if self._posted:
                messages, self._posted = [*self._posted, *messages], []
            self._send_locked(messages)

    def post(self, messages: Sequence[Message], *, lane: Hashable = None) -> None:
        """Collect the messages for the next `flush` or `send`; what is never flushed is dropped at close.

        Raises PeerLost if the connection is closed.
        """
        if lane is not None and self._keeps(lane, messages):
            return
        with self._lock:
            if self._lost is not None:
                raise PeerLost(self._lost.message)
            self._posted.extend(messages)

    def flush(self) -> None:
        """Send all that was posted, by any thread, as one frame; raises as `send` does."""
        with self._lock:
            if self._posted:
                messages, self._posted = self._posted, []
                self._send_locked(messages)

    def holds(self, lane: Hashable) -> bool:
        """Whether a message in that lane would have to wait its turn: what is sent without a lane would overtake it."""
        return self._lanes.holds(lane)

    def drop_lane(self, lane: Hashable) -> None:
        """Forget what waits in the lane: nobody needs it any more."""
        self._lanes.drop(lane)

    def close(self, reason: str = "closed") -> None:
        """End the connection now: what is still queued may be dropped.  Idempotent; `on_close` follows."""
        with self._lock:
            self._close_locked(reason)

    # --- lanes -----------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """About how many bytes wait to be sent, in lanes and behind them."""
        return self._lanes.num_bytes + self.num_unsent if self._lost is None else 0

    def send_part(self, messages: Sequence[Message]) -> None:
        """See `pieray.transport.lanes.Road`."""
        self.send(messages)

    def stall(self, num_bytes: int) -> None:
        """See `pieray.transport.lanes.Road`."""
        self.close(f"the peer does not read: {num_bytes} bytes wait for it")

    def _keeps(self, lane: Hashable, messages: Sequence[Message]) -> bool:
        """Whether the lanes have taken the messages.  Raises PeerLost."""
        if self._lost is not None:
            raise PeerLost(self._lost.message)
        return self._lanes.takes(lane, messages)

    def _refuse(self, message: Message, error: PierayError) -> None:
        try:
            self.on_refused(message, error)
        except PierayError as problem:
            log.warning("%r: nobody could be told of %s: %s", self, type(message).__name__, problem)

    def _log_refused(self, message: Message, error: PierayError) -> None:
        log.warning("%r: a %s cannot be sent: %s", self, type(message).__name__, error)

    # --- for the transports --------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def num_unsent(self) -> int:
        """Bytes that wait in this end."""

    @abc.abstractmethod
    def wait_sent(self, num_bytes: int, timeout_s: float) -> int:
        """See `pieray.transport.lanes.Road`."""

    @abc.abstractmethod
    def _write(self, frame: bytes) -> None:
        """Pass one frame on without waiting; called with the lock held.  Closes and raises PeerLost if it cannot."""

    @abc.abstractmethod
    def _shut(self) -> None:
        """Wake whoever waits for this connection; called once, with the lock held."""

    @abc.abstractmethod
    def _read(self) -> None:
        """Deliver frames until the connection is over; its exception (if any) is the reason."""

    def _release(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back what the connection holds; called once, on the reader thread, before `on_close`."""

    def _prepare(self) -> None:  # noqa: B027 - most need nothing else
        """Start what else the connection needs, before the service hears of it."""

    def start(self) -> None:
        """Begin to deliver, on a thread of its own.  Raises PeerLost if the service's `on_connect` raised."""
        self._prepare()
        self._accept()
        threading.Thread(target=self._run, name=f"pieray-read-{self.peer_id}", daemon=True).start()
        if self._lost is not None:
            raise PeerLost(self._lost.message)

    def run(self) -> None:
        """Deliver on the calling thread until the connection is over."""
        self._prepare()
        self._accept()
        self._run()

    def _run(self) -> None:
        reason = "the peer closed the connection"
        try:
            self._read()
        except PierayError as error:
            reason = error.message
            log.warning("%r: %s", self, reason)
        except OSError as error:
            reason = error.strerror or repr(error)
        except BaseException as error:  # a panic of native code too: nobody would read any more
            reason = f"internal error {error!r}"
            log.exception("%r", self)
        self._end(reason)

    def _end(self, reason: str) -> None:
        self.close(reason)
        self._release()
        assert self._lost is not None
        try:
            self._service.on_close(self, self._lost)
        except BaseException:
            log.exception("%r: on_close raised", self)

    def _accept(self) -> None:
        try:
            self._service.on_connect(self)
        except BaseException as error:
            log.exception("%r: on_connect raised", self)
            self.close(f"on_connect raised {error!r}")

    def _deliver(self, frame: bytes | memoryview) -> None:
        messages = decode(frame)
        if not messages or self._lost is not None:
            return
        try:
            self._service.on_messages(self, messages)
        except BaseException as error:
            log.exception("%r: on_messages raised", self)
            self.close(f"on_messages raised {error!r}")

    def _send_locked(self, messages: Sequence[Message]) -> None:
        if self._lost is not None:
            raise PeerLost(self._lost.message)
        frames, problem = frames_of(messages)
        for frame in frames:
            self._write(frame)
        if problem is not None:
            raise problem

    def _close_locked(self, reason: str) -> None:
        if self._lost is None:
            self._lost = PeerLost(f"connection with {self.peer_id} ({self.role}): {reason}")
            self._posted.clear()
            self._lanes.close()
            self._shut()

    def _give_up(self, reason: str) -> PeerLost:
        """Close with the lock held; the error to raise."""
        self._close_locked(reason)
        assert self._lost is not None
        return PeerLost(self._lost.message)

    def _too_slow(self, num_queued: int) -> PeerLost:
        return self._give_up(f"the peer reads too slowly: {num_queued} bytes wait, the limit is {MAX_QUEUED_BYTES}")
