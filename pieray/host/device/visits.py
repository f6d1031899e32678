"""What an inferlet asks of device groups that are not its own: exports that were made there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pieray.errors import Cancelled, DeviceLost, PierayError
from pieray.host.device.commands import wire_ticket
from pieray.messages import Message, ReadPages

if TYPE_CHECKING:
    from pieray.host.device.device import DeviceClient
    from pieray.host.device.groups import LateDevice

OnAnswer = Callable[[Any], None]
"""Told the value of an answer, or a PierayError."""
TICKET = 1
"""A visit has one request under way at a time."""


class Visits:
    """Of one inferlet.  All methods are called with the inferlet's lock held, and so is what they call back.

    `device` None: there are no other groups.  `locked` calls a function with that lock held, on any thread, sends what
    it has posted, and lets the guest look at its tickets; `later` calls one at once on a thread that holds no lock: a
    session's locks are never taken under an inferlet's.
    """

    def __init__(
        self,
        device: LateDevice | None,
        locked: Callable[[Callable[[], None]], None],
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self._device = device
        self._locked = locked
        self._later = later
        self._open: dict[Visit, None] = {}
        self._is_closed = False

    def others(self) -> list[DeviceClient]:
        """The sessions with groups that are not this inferlet's; none where an engine has one group."""
        return self._device.others() if self._device is not None else []

    def other_with(self, prints: Sequence[int]) -> DeviceClient | None:
        """See `LateDevice.other_with`."""
        return self._device.other_with(prints) if self._device is not None else None

    def begin(self, session: DeviceClient) -> Visit:
        """A visit; raises DeviceLost.  Who begins it ends it."""
        if self._is_closed:
            raise Cancelled("the inferlet has ended")
        assert self._device is not None
        visit = Visit(session, self._device.visitor_number(), self._locked, self._later, self._ended)
        self._open[visit] = None
        try:
            session.admit(visit.number, visit, *self._device.standing())
        except BaseException:
            del self._open[visit]
            raise
        return visit

    def ask(self, session: DeviceClient, message: Callable[[int, int], Message], on_answer: OnAnswer) -> None:
        """A visit of one request: of its ticket and number the message is made."""
        try:
            visit = self.begin(session)
        except PierayError as error:
            on_answer(error)
            return

        def answered(result: Any) -> None:
            visit.end()
            on_answer(result)

        visit.ask(message, answered)

    @property
    def num_open(self) -> int:
        """Visits that have not ended."""
        return len(self._open)

    def _ended(self, visit: Visit) -> None:
        self._open.pop(visit, None)

    def close(self) -> None:
        """The inferlet has ended: nobody is told of an answer any more."""
        self._is_closed = True
        for visit in list(self._open):
            visit.end()


class Visit:
    """A `DeviceUser` of a session, under a number of its own, for as long as it takes."""

    def __init__(
        self,
        session: DeviceClient,
        number: int,
        locked: Callable[[Callable[[], None]], None],
        later: Callable[[Callable[[], None]], None],
        ended: Callable[[Visit], None],
    ) -> None:
        self.number = number
        self._session = session
        self._locked = locked
        self._later = later
        self._ended = ended
        self._on_answer: OnAnswer | None = None
        self._is_over = False

    # --- called by the inferlet, with its lock held ----------------------------------------------

    def ask(self, message: Callable[[int, int], Message], on_answer: OnAnswer) -> None:
        """Ask the ResourceManager."""
        self._send(lambda: self._session.ask_ledger(message(wire_ticket(self.number, TICKET), self.number)), on_answer)

    def read(self, pages: bytes, on_answer: OnAnswer) -> None:
        """Ask the batcher what pages hold that the visit has leased, see ReadPages."""
        message = ReadPages(wire_ticket(self.number, TICKET), self.number, 0, 0, pages)
        self._send(lambda: self._session.post([message]), on_answer)

    def _send(self, send: Callable[[], None], on_answer: OnAnswer) -> None:
        self._on_answer = on_answer
        try:
            send()
            self._later(self._session.flush)
        except DeviceLost as error:
            self._answered(error)

    def end(self) -> None:
        """Give back what the visit has leased; idempotent."""
        if not self._is_over:
            self._is_over = True
            self._on_answer = None
            self._ended(self)
            self._later(lambda: self._session.retire(self.number, lambda: None))

    def _answered(self, result: Any) -> None:
        on_answer, self._on_answer = self._on_answer, None
        if on_answer is not None:
            on_answer(result)

    # --- called by the session, on its threads: see DeviceUser -----------------------------------

    def answered(self, answers: Sequence[tuple[int, object]]) -> None:
        for _, result in answers:
            self._locked(lambda result=result: self._answered(result))  # type: ignore[misc]

    def ledger_answered(self, _ticket: int, result: object) -> None:
        self._locked(lambda: self._answered(result))

    def device_lost(self, error: DeviceLost) -> None:
        self._locked(lambda: self._answered(error))

    def granted(self, _pages: list[int], _num_found: int) -> None: ...

    def lease_failed(self, _error: PierayError) -> None: ...

    def reclaim(self) -> list[int]:
        return []

    def is_idle(self, _now: float) -> bool:
        return False

    def preempt(self, _kept: Sequence[int], _shared: Sequence[int]) -> None:
        self._session.preempted(self.number, 0, is_whole=False)
