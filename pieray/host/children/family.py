"""The children of one inferlet: what they have said, how they have ended, who waits for that."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Protocol

from pieray.client.process import ENDINGS, Event
from pieray.concurrency.timers import Timers
from pieray.config import Limits
from pieray.errors import (
    WIT_CODES,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    EngineError,
    GuestFailed,
    GuestTrapped,
    InvalidRequest,
    PeerLost,
    PierayError,
    QuotaExceeded,
    RemoteFailed,
    error_from,
)
from pieray.host.session.session import EVENT_BYTES
from pieray.host.ticket_work import TicketWork
from pieray.messages import Bind, Kill, Launch, Message, SendText
from pieray.texts import byte_size

Done = Callable[[Any, PierayError | None], None]
Resolved = list[tuple[int, object]]
"""Tickets and their results: given out once no lock is held."""


class Link(Protocol):
    """The connection to the actor that hosts a child; see `pieray.client.link.ActorLink`."""

    def ask(self, make: Callable[[int], Message], done: Done) -> None: ...


class Launching(Protocol):
    """Brings children up; see `pieray.host.children.service.ChildService`."""

    def launch(self, message: Launch, child: Child, done: Callable[[Link | PierayError], None]) -> None:
        """Launch and attach; `done` is called once, from any thread."""


class Child:
    """One child.  A `Listener` of its actor's link.  All fields are guarded by its family's lock."""

    def __init__(self, family: Family, launch: Launch, *, is_linked: bool) -> None:
        self.id = launch.instance_id
        self.name = launch.name
        self.num_events = 0
        self.is_linked = is_linked
        self.is_detached = False
        self.is_unwanted = False  # cancelled, closed, or its parent has ended: its end is nobody's failure
        self.outcome: str | PierayError | None = None
        self.link: Link | None = None
        self.is_launching = True
        self.result_bytes = 0  # that count as unread
        self.early: list[Callable[[Link], None]] = []  # what was asked of it before it ran
        self.texts: deque[str] = deque()
        self.receives: OrderedDict[int, None] = OrderedDict()
        self.waits: list[int] = []
        self.ids: list[int] = []
        self._family = family

    @property
    def is_done(self) -> bool:
        return self.outcome is not None

    def add(self, events: list[Event]) -> None:
        """Events of it, on the link's reader thread; those that came before are skipped."""
        self._family.add_events(self, events)

    def lose(self, error: PierayError) -> None:
        """Its actor is gone."""
        self._family.ended(self, PeerLost(f"child {self.id}: {error.message}"))


class Family:
    """Thread-safe.  No ticket is resolved while the lock is held."""

    def __init__(
        self,
        limits: Limits,
        work: TicketWork,
        launching: Launching,
        timers: Timers,
        fail: Callable[[PierayError], None],
        ask_s: float = 30.0,
    ) -> None:
        """`fail` ends the parent with an error."""
        self._limits = limits
        self._work = work
        self._launching = launching
        self._timers = timers
        self._fail = fail
        self._ask_s = ask_s  # what a child's actor may take to answer
        self._running: set[Child] = set()
        self._given: dict[int, int] = {}  # bytes behind each ticket that the guest has not taken yet
        self._unread = 0
        self._unsent = 0
        self._lock = threading.RLock()

    def launch(self, message: Launch, *, is_linked: bool) -> Child:
        """Begin to launch a child.  Raises QuotaExceeded."""
        size = byte_size(message.source) + byte_size(message.input)
        with self._lock:
            if len(self._running) >= self._limits.children:
                raise QuotaExceeded(
                    f"children: the limit is {self._limits.children} at one time; one more was launched"
                )
            self._count_out(size)
            child = Child(self, message, is_linked=is_linked)
            self._running.add(child)
        self._launching.launch(message, child, lambda found: self._launched(child, size, found))
        return child

    def end(self) -> None:
        """The parent has ended: so do its children, but for the detached ones."""
        with self._lock:
            children = [child for child in self._running if not child.is_detached]
        for child in children:
            self.kill(child, "its parent has ended", None)

    # --- what the parent asks -------------------------------------------------------------------

    def ask_id(self, child: Child, ticket: int) -> None:
        with self._lock:
            if child.is_launching:
                child.ids.append(ticket)
                return
            result: object = child.id if child.link is not None else child.outcome
        self._resolve([(ticket, result)])

    def wait(self, child: Child, ticket: int) -> None:
        with self._lock:
            if child.outcome is None:
                child.waits.append(ticket)
                return
        self._resolve([(ticket, child.outcome)])

    def receive(self, child: Child, ticket: int) -> None:
        with self._lock:
            child.receives[ticket] = None
            resolved = self._matched(child)
        self._resolve(resolved)

    def forget(self, child: Child, ticket: int) -> None:
        """The guest has cancelled a ticket."""
        with self._lock:
            child.receives.pop(ticket, None)
            for tickets in (child.waits, child.ids):
                if ticket in tickets:
                    tickets.remove(ticket)

    def send(self, child: Child, text: str, ticket: int) -> None:
        """Raises QuotaExceeded for more than `Limits.mailbox_bytes` on its way."""
        size = byte_size(text) + EVENT_BYTES
        with self._lock:
            self._count_out(size)

        def sent(_value: Any, error: PierayError | None) -> None:
            with self._lock:
                self._unsent -= size
            self._resolve([(ticket, error)])

        self._ask(child, lambda number: SendText(number, child.id, text), sent)

    def kill(self, child: Child, reason: str, ticket: int | None) -> None:
        with self._lock:
            child.is_unwanted = True

        def killed(_value: Any, error: PierayError | None) -> None:
            if ticket is not None:
                self._resolve([(ticket, None if isinstance(error, Cancelled) else error)])

        self._ask(child, lambda number: Kill(number, child.id, reason), killed)

    def detach(self, child: Child, ticket: int) -> None:
        """From here on it outlives its parent; it counts against the parent's limit for as long as both run."""
        with self._lock:
            child.is_detached = True
            child.is_linked = False
            self._drop_unread(child)

        def released(_value: Any, error: PierayError | None) -> None:
            self._resolve([(ticket, child.id if error is None else error)])

        self._ask(child, lambda number: Bind(number, child.id, is_bound=False), released)

    def close(self, child: Child) -> None:
        """The handle is closed: an end to it, if it runs."""
        with self._lock:
            self._drop_unread(child)
            child.is_detached = True  # nobody listens any more
            is_running = child.outcome is None
        if is_running:
            self.kill(child, "its parent has closed it", None)

    # --- events of the children ------------------------------------------------------------------

    def add_events(self, child: Child, events: list[Event]) -> None:
        """What a child has said."""
        resolved: Resolved = []
        for event in events:
            with self._lock:
                if event.number != child.num_events or child.outcome is not None:
                    continue
                child.num_events += 1
                if event.kind == "text" and not child.is_detached:
                    overrun = self._take_text(child, event.text)
                    resolved += self._matched(child)
                else:
                    overrun = None
            if overrun is not None:
                self._resolve(resolved)
                self.kill(child, overrun.message, None)
                self.ended(child, overrun)
                return
            if event.kind in ENDINGS:
                self._resolve(resolved)
                self.ended(child, event.text if event.kind == "result" else reported(event.text))
                return
        self._resolve(resolved)

    def ended(self, child: Child, outcome: str | PierayError) -> None:
        """The child has a result or an error, once."""
        with self._lock:
            if child.outcome is not None:
                return
            size = byte_size(outcome) if isinstance(outcome, str) else 0
            if size and (room := self._room()) < size:
                outcome, size = (
                    QuotaExceeded(
                        f"mailbox_bytes: the limit is {self._limits.mailbox_bytes}, {room} are "
                        f"left; the result of child {child.id} has {size}"
                    ),
                    0,
                )
            child.outcome = outcome
            if not child.is_detached:
                child.result_bytes = size
                self._unread += size
            self._running.discard(child)
            resolved: Resolved = [(ticket, outcome) for ticket in child.waits]
            child.waits = []
            resolved += self._matched(child)
            is_failure = isinstance(outcome, PierayError) and child.is_linked and not child.is_unwanted
        self._resolve(resolved)
        if is_failure and isinstance(outcome, PierayError):
            self._fail(type(outcome)(f"the linked child {child.id} failed: {outcome.message}"))

    def _launched(self, child: Child, size: int, found: Link | PierayError) -> None:
        error = as_guest_sees(found) if isinstance(found, PierayError) else None
        with self._lock:
            self._unsent -= size
            child.is_launching = False
            child.link = None if isinstance(found, PierayError) else found
            ids, child.ids = child.ids, []
            early, child.early = child.early, []
        if error is not None:
            self.ended(child, error)
        self._resolve([(ticket, error or child.id) for ticket in ids])
        for ask in early:
            ask(child.link or _Gone(error or PierayError()))

    # --- inside ---------------------------------------------------------------------------------

    def _ask(self, child: Child, make: Callable[[int], Message], done: Done) -> None:
        """Ask the child's actor, once there is one; `done` is called once, with an error after `ask_s`."""
        once = _Once(done)

        def ask(link: Link) -> None:
            silence = DeadlineExceeded(f"the actor of child {child.id} did not answer within {self._ask_s} s")
            timer = self._timers.at(time.monotonic() + self._ask_s, lambda: once(None, silence))

            def answered(value: Any, error: PierayError | None) -> None:
                timer.cancel()
                once(value, error)

            try:
                link.ask(make, answered)
            except PierayError as error:
                answered(None, error)

        with self._lock:
            if child.is_launching:
                child.early.append(ask)
                return
            outcome = child.outcome
        ask(child.link or _Gone(outcome if isinstance(outcome, PierayError) else PierayError()))

    def _count_out(self, size: int) -> None:
        limit = self._limits.mailbox_bytes
        if self._unsent + size > limit:
            raise QuotaExceeded(
                f"mailbox_bytes: the limit is {limit}; {self._unsent} are on their way to children, "
                f"{size} more were given"
            )
        self._unsent += size

    def _room(self) -> int:
        """Bytes of `Limits.mailbox_bytes` that children may still fill."""
        for ticket in [t for t in self._given if not self._work.tickets.is_open(t)]:
            self._unread -= self._given.pop(ticket)
        return self._limits.mailbox_bytes - self._unread

    def _take_text(self, child: Child, text: str) -> QuotaExceeded | None:
        size = byte_size(text) + EVENT_BYTES
        if (room := self._room()) < size:
            return QuotaExceeded(
                f"mailbox_bytes: the limit is {self._limits.mailbox_bytes}, {room} are left; "
                f"child {child.id} has sent {size} more that its parent did not receive"
            )
        self._unread += size
        child.texts.append(text)
        return None

    def _matched(self, child: Child) -> Resolved:
        """Receives that have a text, or that will have none any more."""
        resolved: Resolved = []
        while child.receives and (child.texts or child.outcome is not None):
            ticket, _ = child.receives.popitem(last=False)
            if not self._work.tickets.is_open(ticket):
                continue
            if child.texts:
                text = child.texts.popleft()  # counts as unread until it is taken: see `_room`
                self._given[ticket] = byte_size(text) + EVENT_BYTES
                resolved.append((ticket, text))
            else:
                resolved.append((ticket, Cancelled(f"child {child.id} has ended and sends no more")))
        return resolved

    def _drop_unread(self, child: Child) -> None:
        self._unread -= sum(byte_size(text) + EVENT_BYTES for text in child.texts) + child.result_bytes
        child.texts.clear()
        child.result_bytes = 0

    def _resolve(self, resolved: Resolved) -> None:
        for ticket, result in resolved:
            self._work.complete(ticket, result)


class _Gone:
    """In place of the link to a child that was never launched."""

    def __init__(self, error: PierayError) -> None:
        self._error = error

    def ask(self, _make: Callable[[int], Message], done: Done) -> None:
        done(None, self._error)


class _Once:
    """Calls `done` the first time."""

    def __init__(self, done: Done) -> None:
        self._todo = [done]

    def __call__(self, value: Any, error: PierayError | None) -> None:
        try:
            done = self._todo.pop()
        except IndexError:
            return
        done(value, error)


def reported(payload: str) -> PierayError:
    """A child's "error" event, as its parent is told."""
    problem = json.loads(payload)
    return as_guest_sees(error_from(str(problem["code"]), str(problem["message"])))


def as_guest_sees(error: PierayError) -> PierayError:
    """The error as a guest sees it: one of the WIT's codes."""
    if error.code in WIT_CODES:
        return error
    if isinstance(error, (GuestFailed, GuestTrapped)):
        return RemoteFailed(error.message)
    if isinstance(error, ConfigError):
        return InvalidRequest(error.message)
    return PeerLost(error.message) if isinstance(error, EngineError) else PierayError(error.message)
