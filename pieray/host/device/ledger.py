"""What an inferlet asks of the ResourceManager by itself: pages reserved, exports, imports; and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from pieray.errors import Cancelled, DeviceLost, OutOfPages, PierayError, QuotaExceeded
from pieray.messages import LeasePages, Message
from pieray.pages.space import PageSpace

OnAnswer = Callable[[object], None]
"""Told the value of an answer, or a PierayError."""
GRACE_S = 2.0
"""How long after its deadline a request for pages is given up here: the ResourceManager answers by then if it lives."""


class Cancellable(Protocol):
    """A timer."""

    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Cancellable]
"""Calls a function so many seconds from now, with the instance's lock held, unless it is cancelled."""


def no_answer(wait_s: float) -> OutOfPages:
    """The error of a request for pages that nobody has answered."""
    return OutOfPages(f"page_wait_s: no page came within {wait_s:g} s; the ResourceManager does not even answer")


class LedgerDevice(Protocol):
    """What is needed of the device client."""

    def ask_ledger(self, message: Message) -> None:
        """Collect a message for the ResourceManager; raises DeviceLost when it is gone."""

    def release(self, inferlet: int, pages: Sequence[int]) -> None:
        """Give leased pages back."""


class Device(LedgerDevice, Protocol):
    """What an outbox needs of the device client."""

    @property
    def is_chosen(self) -> bool:
        """False as long as the inferlet may compute on any of several device groups."""

    def post(self, messages: Sequence[Message]) -> None:
        """Collect messages for the batcher; raises DeviceLost when it is gone."""

    def lease(
        self, inferlet: int, count: int, deadline_s: float, hashes: bytes = b"", num_tokens: int = 0, num_more: int = 0
    ) -> None:
        """Ask for pages, see LeasePages; the answer comes to `granted` or `lease_failed`."""

    def preempted(self, inferlet: int, num_pages: int, *, is_whole: bool) -> None:
        """Tell the ResourceManager that the inferlet has given up pages, see Preempted."""


class LedgerClient:
    """All methods are called with the instance's lock held."""

    def __init__(
        self, inferlet: int, device: LedgerDevice, pages: PageSpace, limit: int, call_later: CallLater
    ) -> None:
        self.inferlet = inferlet
        self.call_later = call_later
        self._timers: dict[int, Cancellable] = {}
        self._late: set[int] = set()  # tickets of requests for pages that were given up, whose answers may come yet
        self._limit = limit  # Limits.tickets
        self._device = device
        self._pages = pages
        self._asked: dict[int, OnAnswer] = {}
        self._waiting: dict[int, tuple[set[int], OnAnswer]] = {}  # by ticket: commands not yet finished
        self._is_closed = False
        self.num_on_their_way = 0
        """Pages that are leased, and that the page space knows nothing of yet: what they hold is being copied."""

    def check_room(self) -> None:
        """Raise QuotaExceeded over `Limits.tickets` requests: one whose ticket was cancelled still counts here."""
        if len(self._asked) + len(self._waiting) >= self._limit:
            raise QuotaExceeded(
                f"tickets: the limit is {self._limit}, as many requests for pages and exports are "
                "under way; one more was made"
            )

    def ask(self, ticket: int, message: Message, on_answer: OnAnswer) -> None:
        """Send a request under the guest's ticket; `on_answer` is called, perhaps at once, with what came of it.

        One for pages has a deadline, which is kept here too: the ResourceManager may be frozen.
        """
        self._asked[ticket] = on_answer
        if isinstance(message, LeasePages):
            wait_s = message.deadline_s
            self._timers[ticket] = self.call_later(wait_s + GRACE_S, lambda: self._overdue(ticket, wait_s))
        try:
            self._device.ask_ledger(message)
        except DeviceLost as error:
            self.answered(ticket, error)

    def answered(self, ticket: int, result: object) -> None:
        """The answer to a request."""
        if (timer := self._timers.pop(ticket, None)) is not None:
            timer.cancel()
        on_answer = self._asked.pop(ticket, None)
        if on_answer is not None:
            on_answer(result)
            self.give_back()
        elif ticket in self._late:
            self._late.discard(ticket)
            if isinstance(result, list):
                self.release(np.frombuffer(result[0], "<u4").tolist())

    def _overdue(self, ticket: int, wait_s: float) -> None:
        self.answered(ticket, no_answer(wait_s))
        self._late.add(ticket)

    def after(self, commands: set[int], ticket: int, call: OnAnswer) -> None:
        """Call with None when the commands, by ticket, have finished; with an error if the device is lost before."""
        if commands:
            self._waiting[ticket] = commands, call
        else:
            call(None)

    def finished(self, command: int) -> None:
        """A command has completed or failed, and its pages are not in flight any more."""
        if not self._waiting:
            return
        for ticket, (commands, call) in list(self._waiting.items()):
            commands.discard(command)
            if not commands:
                del self._waiting[ticket]
                call(None)

    def give_back(self, *, is_idle: bool = False) -> None:
        """Release the pages of exports that nothing here uses any more; those leased ahead of need too if `is_idle`."""
        pages = self._pages.take_returned()
        if is_idle:
            self._pages.unreserve()
            pages += self._pages.surplus(keep=0)
        self.release(pages)

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back.  Not after the guest's end: all of them come back then, and with its lease."""
        if pages and not self._is_closed:
            self._device.release(self.inferlet, pages)

    def fail_all(self, error: PierayError) -> None:
        """The device is lost."""
        for ticket in list(self._waiting):
            self._waiting.pop(ticket)[1](error)
        for ticket in list(self._asked):
            self.answered(ticket, error)
        self._late.clear()

    def close(self) -> None:
        """The guest has ended."""
        self._is_closed = True
        self.fail_all(Cancelled("the inferlet has ended"))
