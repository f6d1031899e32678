"""Opening an export that another device group has: its pages are copied to this inferlet's group.

    find     who has it is asked, one group after the other, and leases it to the visit: it stays while it is read
    lease    as many pages here
    copy     a part at a time, of CHUNK_BYTES about: read there, written here

One export is fetched at a time.  What goes wrong is the answer; nothing is left behind then, neither here nor there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pieray.errors import DeviceLost, Evicted, NotFound, PierayError
from pieray.host.device.commands import wire_ticket
from pieray.host.device.outbox import Outbox
from pieray.host.device.visits import Visit, Visits
from pieray.messages import ImportPages, LeasePages, WritePages
from pieray.messages.leases import ACCESSES, export_print

CHUNK_BYTES = 8 << 20


class Fetching:
    """Of one inferlet.  All methods are called with the inferlet's lock held."""

    def __init__(
        self,
        visits: Visits,
        outbox: Outbox,
        who: tuple[str, str],
        page_wait_s: float,
        *,
        is_wanted: Callable[[int], bool],
        check_room: Callable[[int], None],
    ) -> None:
        """`who`: tenant and user.  `is_wanted`: whether the guest has a ticket still; `check_room` raises QuotaExceeded
        where it may not hold so many pages more."""
        self._visits = visits
        self._outbox = outbox
        self._who = who
        self._page_wait_s = page_wait_s
        self._is_wanted = is_wanted
        self.check_room = check_room
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._is_busy = self._is_looking = False

    @property
    def num_waiting(self) -> int:
        """Exports that are to be fetched yet."""
        return len(self._waiting)

    def fetch(self, ticket: int, name: str, missing: PierayError, on_answer: Callable[[Any], None]) -> None:
        """The export, as the ResourceManager of the inferlet's own group would have answered, but for the pages, which
        are the inferlet's alone; or `missing`, if no group has it.  `ticket`: of the guest's."""

        def done(result: Any) -> None:
            self._is_busy = False
            self._outbox.ledger.num_on_their_way = 0
            try:
                on_answer(result)
            finally:
                self._next()

        self._waiting.append((ticket, lambda: _Fetch(self, ticket, name, missing, done).start()))
        self._next()

    def _next(self) -> None:
        """Begin with the next that somebody waits for; many may have their answers at once."""
        if self._is_looking:
            return
        self._is_looking = True
        try:
            while self._waiting and not self._is_busy:
                ticket, start = self._waiting.popleft()
                if self._is_wanted(ticket):
                    self._is_busy = True
                    start()
        finally:
            self._is_looking = False

    def find(self, name: str, found: Callable[[Visit | None, Any], None], missing: PierayError) -> None:
        """Ask one group after the other, first the one that is said to have it; `found` is told the visit that has
        leased the export, and its facts, or None and why there is none."""
        known = [export_print(access, *self._who, name) for access in ACCESSES]
        holding = self._visits.other_with(known)
        left = sorted(self._visits.others(), key=lambda session: session is not holding)

        def ask_next(missing: PierayError) -> None:
            while left:
                try:
                    visit = self._visits.begin(left.pop(0))
                except DeviceLost:
                    continue
                except PierayError as error:
                    found(None, error)
                    return
                visit.ask(
                    lambda wire, number: ImportPages(wire, number, *self._who, name), partial(answered, visit, missing)
                )
                return
            found(None, missing)

        def answered(visit: Visit, missing: PierayError, result: Any) -> None:
            if not isinstance(result, PierayError):
                found(visit, result)
                return
            visit.end()
            is_worse = isinstance(result, Evicted) or not isinstance(missing, (NotFound, Evicted))
            ask_next(result if is_worse else missing)

        ask_next(missing)

    def lease(self, ticket: int, count: int, on_answer: Callable[[Any], None]) -> None:
        """Pages of the inferlet's own group, under the guest's ticket."""
        inferlet = self._outbox.ledger.inferlet
        self._outbox.ledger.num_on_their_way = count
        message = LeasePages(wire_ticket(inferlet, ticket), inferlet, count, self._page_wait_s)
        self._outbox.ledger.ask(ticket, message, on_answer)

    def write(self, pages: bytes, data: bytes, checksum: int, on_answer: Callable[[Any], None]) -> None:
        """Write what was read into pages of the inferlet."""
        inferlet = self._outbox.ledger.inferlet
        self._outbox.own.post(
            lambda ticket: WritePages(wire_ticket(inferlet, ticket), inferlet, 0, 0, pages, data, checksum), on_answer
        )

    def release(self, pages: bytes) -> None:
        """Give them back."""
        self._outbox.ledger.release(np.frombuffer(pages, "<u4").tolist())


class _Fetch:
    """One export on its way."""

    def __init__(
        self, fetching: Fetching, ticket: int, name: str, missing: PierayError, done: Callable[[Any], None]
    ) -> None:
        self._fetching = fetching
        self._ticket = ticket
        self._name = name
        self._missing = missing
        self._done = done
        self._visit: Visit | None = None
        self._there = self._here = b""  # pages, u32
        self._facts: list[Any] = []
        self._num_done = 0
        self._num_next = 1  # pages of the next part: how large a page is, the first one tells

    def start(self) -> None:
        self._fetching.find(self._name, self._found, self._missing)

    def _found(self, visit: Visit | None, result: Any) -> None:
        if visit is None:
            self._done(result)
            return
        self._visit = visit
        self._there, *self._facts = result
        count = len(self._there) // 4
        try:
            self._fetching.check_room(count)
        except PierayError as error:
            self._end(error)
            return
        self._fetching.lease(self._ticket, count, self._leased)

    def _leased(self, result: Any) -> None:
        if isinstance(result, PierayError):
            self._end(result)
            return
        self._here = bytes(result[0])
        self._copy()

    def _copy(self) -> None:
        if self._num_done * 4 == len(self._there):
            self._end([self._here, *self._facts])
            return
        assert self._visit is not None
        self._visit.read(self._part(self._there), self._read)

    def _read(self, result: Any) -> None:
        if isinstance(result, PierayError):
            self._end(result)
            return
        data, checksum = result
        part = self._part(self._here)
        self._num_done += len(part) // 4
        self._num_next = max(1, CHUNK_BYTES * (len(part) // 4) // max(len(data), 1))
        self._fetching.write(part, data, checksum, self._written)

    def _written(self, result: Any) -> None:
        if isinstance(result, PierayError):
            self._end(result)
        else:
            self._copy()

    def _part(self, pages: bytes) -> bytes:
        return pages[4 * self._num_done : 4 * (self._num_done + self._num_next)]

    def _end(self, result: Any) -> None:
        if self._visit is not None:
            self._visit.end()
        if isinstance(result, PierayError):
            self._fetching.release(self._here)
        self._done(result)
