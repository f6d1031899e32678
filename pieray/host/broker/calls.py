"""One inferlet's requests to the Broker: tickets, quotas, and what becomes of texts that it does not take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pieray.concurrency.timers import Timers
from pieray.errors import Cancelled, DeadlineExceeded, InvalidRequest, PierayError, QuotaExceeded, Unsupported
from pieray.host.broker.client import BrokerClient
from pieray.host.identity import Identity
from pieray.host.ticket_work import TicketWork
from pieray.host.tickets import Kind
from pieray.messages import Message, Settle, Withdraw
from pieray.texts import byte_size, check_size

MAX_NAME_BYTES = 512
ANSWER_S = 30.0
"""How long the Broker may take for what it does at once; a frozen one is a `deadline`."""


class BrokerCalls:
    """Requests under way are bounded, those that the guest has forgotten included: each holds memory elsewhere."""

    def __init__(
        self, identity: Identity, work: TicketWork, timers: Timers, find: Callable[[], BrokerClient | None]
    ) -> None:
        """`find`: the way to the Broker, if there is one."""
        self.tenant = identity.tenant
        self.work = work
        self.timers = timers
        self._limits = identity.limits
        self._find = find
        self._num_calls = 0
        self._num_bytes = 0
        self._lock = threading.Lock()
        work.at_end(self._flush)

    @property
    def client(self) -> BrokerClient:
        """Raises Unsupported where there is no Broker."""
        found = self._find()
        if found is None:
            raise Unsupported("this engine has no Broker: no messages between inferlets, no store")
        return found

    def check_name(self, what: str, name: str, least: int = 1) -> str:
        """The name of a queue, a topic or a key; raises InvalidRequest."""
        if not least <= (size := byte_size(name)) <= MAX_NAME_BYTES:
            raise InvalidRequest(f"a {what} has from {least} to {MAX_NAME_BYTES} bytes; given {size}")
        return name

    def check_text(self, text: str) -> int:
        """Bytes of a text; raises QuotaExceeded."""
        size = byte_size(text)
        check_size("message_bytes", self._limits.message_bytes, size)
        return size

    def ask(
        self,
        kind: Kind,
        make: Callable[[int], Message],
        *,
        num_bytes: int = 0,
        within_s: float | None = None,
        value: Callable[[Any], object] = lambda value: value,
        settle: Callable[[int, bool], None] | None = None,
    ) -> int:
        """Post `make(number)`; a ticket for `value` of the answer.

        `settle(number, is_taken)` is called when the guest has taken a good answer, or when it never will get one: it
        has forgotten the ticket, or ended, or there was an error.  Raises QuotaExceeded, PeerLost, Unsupported.
        """
        client = self.client
        call = _Call(self, client, kind, num_bytes, value, settle)
        self._count(num_bytes)
        try:
            call.start(make, within_s)
        except BaseException:
            self.uncount(num_bytes)
            raise
        return call.ticket

    def tell(self, message: Message) -> None:
        """Post what has no answer."""
        if (found := self._find()) is not None:
            found.tell(message)

    def keep(self, number: int, is_taken: bool) -> None:
        """`settle` for a text that the Broker keeps until the guest has it."""
        self.tell(Settle(number, self.tenant, is_taken))

    def _count(self, num_bytes: int) -> None:
        limits = self._limits
        with self._lock:
            if self._num_calls >= limits.tickets:
                raise QuotaExceeded(f"tickets: the limit is {limits.tickets} requests at the Broker; one more was made")
            if self._num_bytes + num_bytes > limits.mailbox_bytes:
                raise QuotaExceeded(
                    f"mailbox_bytes: the limit is {limits.mailbox_bytes}; {self._num_bytes} are on "
                    f"their way, {num_bytes} more were given"
                )
            self._num_calls += 1
            self._num_bytes += num_bytes

    def uncount(self, num_bytes: int) -> None:
        with self._lock:
            self._num_calls -= 1
            self._num_bytes -= num_bytes

    def _flush(self) -> None:
        if (found := self._find()) is not None:
            found.flush()


class _Call:
    """One request from the guest's call to the Broker's answer."""

    def __init__(
        self,
        calls: BrokerCalls,
        client: BrokerClient,
        kind: Kind,
        num_bytes: int,
        value: Callable[[Any], object],
        settle: Callable[[int, bool], None] | None,
    ) -> None:
        self._calls = calls
        self._work = calls.work
        self._client = client
        self._kind = kind
        self._num_bytes = num_bytes
        self._value = value
        self._settle = settle
        self._tenant = calls.tenant
        self._number = 0  # until the message is made
        self._is_withdrawn = False
        self._lock = threading.Lock()  # a request is either made or withdrawn first
        self._timer: Any = None
        self.ticket = 0

    def start(self, make: Callable[[int], Message], within_s: float | None) -> None:
        def message(number: int) -> Message:
            with self._lock:
                if self._is_withdrawn:
                    raise Cancelled("the request was withdrawn")
                self._number = number
            return make(number)

        work = self._work
        self.ticket = work.begin(self._kind, cancel=self._withdraw)
        if within_s is not None:
            self._timer = self._calls.timers.at(time.monotonic() + within_s, lambda: self._expire(within_s))
        try:
            self._client.ask(message, self._answered)
        except PierayError:
            self._stop_timer()
            work.abandon(self.ticket)
            raise

    def _withdraw(self) -> None:
        """The guest wants it no more; the Broker answers all the same."""
        with self._lock:
            self._is_withdrawn = True
        if self._number:
            self._client.tell(Withdraw(self._number, self._tenant))

    def _expire(self, seconds: float) -> None:
        self._work.complete(self.ticket, DeadlineExceeded(f"the Broker did not answer within {seconds:g} s"))
        self._withdraw()
        self._client.flush()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _answered(self, value: Any, error: PierayError | None) -> None:
        """On a reader thread."""
        work = self._work
        self._stop_timer()
        self._calls.uncount(self._num_bytes)
        settle = None if self._settle is None else partial(self._settle, self._number)
        if error is not None:
            work.complete(self.ticket, error)
        elif work.complete(self.ticket, self._value(value), settle):
            if work.is_closed:
                work.tickets.drop((self.ticket,))
            return
        if settle is not None:
            settle(False)
