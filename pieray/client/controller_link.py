"""A client's connection to the Controller's socket: its methods, without Ray."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from pieray.client.controller_calls import ControllerCalls
from pieray.errors import ActorGone, DeadlineExceeded, NoAnswer, PeerLost, PierayError
from pieray.messages.controller import Ask
from pieray.messages.frame import Message
from pieray.transport import Connection, Endpoint, PendingCalls, connect

log = logging.getLogger(__name__)

DOOR_S = 30.0
"""For the Controller to say where its socket is."""
DIAL_S = 10.0
"""For a connection to it."""


class ControllerLink:
    """Calls to the Controller behind an endpoint, for `ControllerCalls`.  Thread-safe."""

    def __init__(self, endpoint: Endpoint, token: str, timeout_s: float = DIAL_S) -> None:
        """Connect; raises what `pieray.transport.connect` raises."""
        self.token = token
        self._calls = PendingCalls()
        peer_id = f"cli-{os.getpid()}-{secrets.token_hex(4)}"
        self._conn = connect(endpoint, self, role="client", peer_id=peer_id, token=token, timeout_s=timeout_s)

    def begin(self, method: str, *args: Any) -> Callable[[float], Any]:
        """Call a method; what this returns waits so many seconds for the answer, and may be asked again after NoAnswer.

        The method's PierayErrors come through, the Controller's death is ActorGone.  Lists come where it gives tuples.
        """
        outcomes: SimpleQueue[tuple[Any, PierayError | None]] = SimpleQueue()
        try:
            self._calls.submit(
                self._conn, lambda ticket: Ask(ticket, method, list(args)), lambda *outcome: outcomes.put(outcome)
            )
        except PeerLost as lost:
            raise ActorGone(f"the engine's Controller is gone: {lost.message}") from lost

        def answer(timeout_s: float) -> Any:
            try:
                value, error = outcomes.get(timeout=max(0.0, timeout_s))
            except Empty:
                raise NoAnswer(f"the engine did not answer {method} within {timeout_s:.3g} s") from None
            if isinstance(error, PeerLost) and not self._conn.is_open:
                raise ActorGone(f"the engine's Controller is gone: {error.message}")
            if error is not None:
                raise error
            return value

        return answer

    @property
    def is_open(self) -> bool:
        return self._conn.is_open

    def close(self) -> None:
        """Hang up.  Idempotent."""
        self._conn.close("the client has closed its engine handle")

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        self._calls.resolve(conn, messages)

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        self._calls.fail_all(conn, error)


class LaunchPath:
    """How a process with a Ray handle of the Controller launches: through the Controller's socket, if it has one, at
    which as many may wait as its line holds; as a Ray actor it takes on few calls at a time, in order of arrival.

    Thread-safe.
    """

    def __init__(self, calls: ControllerCalls, token: str) -> None:
        """`calls` go to the actor."""
        self._calls = calls
        self._token = token
        self._door: tuple[ControllerLink, ControllerCalls] | None = None
        self._dialling: Future[ControllerCalls] | None = None  # by one of those who want it
        self._is_closed = False
        self._lock = threading.Lock()  # never held while the Controller is asked or its socket is dialled

    def calls(self) -> ControllerCalls:
        """The way to take now; dialled when it is first needed, and again when it has broken.

        One dials, those who want it meanwhile share what comes of it.  Raises ActorGone, NoAnswer.
        """
        with self._lock:
            if self._door is not None and self._door[0].is_open:
                return self._door[1]
            dialling = self._dialling
            if is_first := dialling is None:
                dialling = self._dialling = Future()
        assert dialling is not None
        if is_first:
            self._dial(dialling)
        try:
            return dialling.result(DOOR_S + 2 * DIAL_S)
        except TimeoutError:
            return self._calls
        except PierayError as error:
            raise type(error)(error.message) from None  # one of its own for each who waits

    def _dial(self, dialling: Future[ControllerCalls]) -> None:
        found = self._calls
        try:
            found = self._dialled()
        except PierayError as error:
            dialling.set_exception(error)
        finally:
            with self._lock:
                self._dialling = None
            if not dialling.done():  # where a Ctrl-C has ended it, the others go by Ray calls
                dialling.set_result(found)

    def _dialled(self) -> ControllerCalls:
        endpoint = self._calls.ask("door", timeout_s=DOOR_S)
        if not endpoint:
            return self._calls
        try:
            link = ControllerLink(Endpoint.from_wire(endpoint), self._token)
        except (PeerLost, DeadlineExceeded) as error:
            log.info("the Controller's socket cannot be reached, launches go by Ray calls: %s", error)
            return self._calls
        calls = ControllerCalls(link.begin)
        with self._lock:
            if not self._is_closed:
                self._door = link, calls
                return calls
        link.close()
        return calls

    def close(self) -> None:
        """Hang up.  Idempotent."""
        with self._lock:
            self._is_closed, door = True, self._door
        if door is not None:
            door[0].close()
