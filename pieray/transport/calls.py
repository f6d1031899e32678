"""Requests and their answers: ticket numbers out, `Completed` or `Failed` in."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from pieray.concurrency.deadlines import Deadline
from pieray.errors import PeerLost, PierayError, error_from
from pieray.messages import Completed, Failed, Message
from pieray.transport.base import Connection

#: Called once, with the value or the error, on the reader thread of the connection (or of its `fail_all`).
Done: TypeAlias = Callable[[Any, PierayError | None], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pending:
    conn: Connection
    done: Done


class PendingCalls:
    """The calls of one process that wait for an answer, over any number of connections.

    Its owner, a Service, passes on what it is told:

        def on_messages(self, conn, messages):
            for message in self.calls.resolve(conn, messages):
                ...  # all that is no answer
        def on_close(self, conn, error):
            self.calls.fail_all(conn, error)

    Each call ends exactly once: with its answer, with PeerLost when its connection closes, or by `forget`.
    An answer that comes later, or over another connection, is ignored.  No locks: each step is one dict
    operation, and whoever pops the ticket ends the call.
    """

    def __init__(self) -> None:
        self._tickets = itertools.count(1)
        self._pending: dict[int, _Pending] = {}

    def __len__(self) -> int:
        """Calls that have no answer yet."""
        return len(self._pending)

    def expect(self, conn: Connection, done: Done) -> int:
        """A fresh ticket whose answer goes to `done`; the caller then sends a message that bears it."""
        ticket = next(self._tickets)
        self._pending[ticket] = _Pending(conn, done)
        return ticket

    def forget(self, ticket: int) -> bool:
        """Drop the call: `done` is not called any more.  False if it has ended already."""
        return self._pending.pop(ticket, None) is not None

    def submit(self, conn: Connection, make: Callable[[int], Message], done: Done, *, post: bool = False) -> int:
        """Send `make(ticket)` and return the ticket; `post` leaves it to the connection's next `flush`.

        What is meant for an inferlet (`instance_id`) goes in a lane of its own.

        Raises as `Connection.send` and `make` do; `done` is not called then.
        """
        ticket = self.expect(conn, done)
        try:
            message = make(ticket)
            send = conn.post if post else conn.send
            send((message,), lane=getattr(message, "instance_id", None))
        except BaseException:
            if self.forget(ticket):
                raise
        return ticket

    def call(self, conn: Connection, make: Callable[[int], Message], timeout: float | Deadline | None) -> Any:
        """Send `make(ticket)` and wait for the value of its Completed.

        Raises the error that the peer reported, PeerLost if the connection closes, DeadlineExceeded after `timeout`
        seconds (before anything is sent, if it has passed already), InvalidRequest for a timeout that is none.  Not
        for reader threads: they would wait for themselves.
        """
        deadline = timeout if isinstance(timeout, Deadline) else Deadline(timeout)
        what = f"{conn.peer_id} did not answer"
        deadline.check(what)
        outcome: list[Any] = []
        answered = threading.Lock()
        answered.acquire()

        def done(value: Any, error: PierayError | None) -> None:
            outcome.extend((value, error))
            answered.release()

        ticket = self.submit(conn, make, done)
        # Whoever has popped the ticket is about to release the lock: then there is an answer to wait for.
        while not answered.acquire(timeout=deadline.left_s()):
            if not deadline.is_over:
                continue
            if self.forget(ticket) or not answered.acquire(timeout=1.0):
                raise deadline.error(what)
            break
        value, error = outcome
        if error is not None:
            raise error
        return value

    def call_many(
        self, conn: Connection, makes: Sequence[Callable[[int], Message]], timeout: float | Deadline | None
    ) -> list[tuple[Any, PierayError | None]]:
        """`call` for many at once, in one frame and no lane: value and error of each, in order.

        Raises as `call` does before anything is sent.
        """
        deadline = timeout if isinstance(timeout, Deadline) else Deadline(timeout)
        what = f"{conn.peer_id} did not answer"
        deadline.check(what)
        outcomes: list[tuple[Any, PierayError | None] | None] = [None] * len(makes)
        num_left = len(makes)
        changed = threading.Condition()

        def done(index: int, value: Any, error: PierayError | None) -> None:
            nonlocal num_left
            with changed:
                outcomes[index] = value, error
                num_left -= 1
                if not num_left:
                    changed.notify()

        tickets = [self.expect(conn, partial(done, index)) for index in range(len(makes))]
        try:
            messages = [make(ticket) for make, ticket in zip(makes, tickets, strict=True)]
            conn.send(messages, lane=getattr(messages[0], "instance_id", None) if len(messages) == 1 else None)
        except BaseException:
            for ticket in tickets:
                self.forget(ticket)
            raise
        with changed:
            while num_left and not deadline.is_over:
                changed.wait(deadline.left_s())
        for index, ticket in enumerate(tickets):
            if self.forget(ticket):
                outcomes[index] = None, deadline.error(what)
        with changed:  # whoever has popped a ticket is about to tell
            changed.wait_for(lambda: None not in outcomes, 1.0)
        return [outcome or (None, deadline.error(what)) for outcome in outcomes]

    def resolve(self, conn: Connection, messages: list[Message]) -> list[Message]:
        """End the calls that these messages answer; the messages that are no answers, in order."""
        others: list[Message] = []
        for message in messages:
            if type(message) is Completed:
                self._finish(conn, message.ticket, message.value, None)
            elif type(message) is Failed:
                error = error_from(message.code, message.message, retry_after_s=message.retry_after_s)
                self._finish(conn, message.ticket, None, error)
            else:
                others.append(message)
        return others

    def refuse(self, message: Message, error: PierayError) -> None:
        """The message of a call cannot travel (`Connection.on_refused`): the call ends with the error."""
        pending = self._pending.get(ticket := getattr(message, "ticket", 0))
        if pending is not None:
            self._finish(pending.conn, ticket, None, error)

    def fail_all(self, conn: Connection, error: PeerLost) -> None:
        """End every call over the connection: each gets an error of its own with the same text."""
        for ticket in [ticket for ticket, pending in self._pending.copy().items() if pending.conn is conn]:
            self._finish(conn, ticket, None, PeerLost(error.message))

    def _finish(self, conn: Connection, ticket: int, value: Any, error: PierayError | None) -> None:
        pending = self._pending.get(ticket)
        if pending is None or pending.conn is not conn or self._pending.pop(ticket, None) is None:
            return
        try:
            pending.done(value, error)
        except BaseException:
            log.exception("the callback of ticket %d raised", ticket)
