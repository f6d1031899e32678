"""How an inferlet gives up pages: all that it has, for others, or those that it does not use now, for itself.

    for others   the ResourceManager asks (`Preempt`). Nothing new is sent, plans are stopped after the step in
                 progress, and when nothing is in flight any more the pages are copied and released
    for itself   what it has and what it lacks are more than the pool. Pages that nothing in flight uses are copied,
                 the least recently used first, and are its own to use anew; if there are none, the youngest of its
                 plans is stopped, and goes on later

    is_going     | stopping, what is in flight is awaited | copying (`Swap.ticket`) | over: `resume`

What the pages held is brought back by whatever uses them next (`pieray.host.device.swap`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from pieray.arrays import I64
from pieray.host.device.commands import Command, Run, wire_ticket
from pieray.host.device.ledger import Device, LedgerClient
from pieray.host.device.swap import Swap
from pieray.host.device.work import Work, rows_of
from pieray.messages import Message, StopPlan
from pieray.pages.growing import Growing
from pieray.pages.space import PageSpace

MANY = 1 << 30
PART_OF_POOL = 16
"""For itself an inferlet gives up at least one in so many pages of the pool at a time: each time costs a step."""


class Preemption:
    """Of one inferlet.  All methods are called with the instance's lock held."""

    def __init__(
        self,
        pages: PageSpace,
        swap: Swap,
        work: Work,
        ledger: LedgerClient,
        device: Device,
        *,
        pool_pages: int,
        number: Callable[[], int],
        post: Callable[[list[Message]], None],
        given_up: Callable[[], None],
        resume: Callable[[bool], None],
    ) -> None:
        """`number` gives tickets; `given_up` is called when pages have been, and `resume` when sending may go on, with
        whether it was for others."""
        self._pages = pages
        self._swap = swap
        self._work = work
        self._ledger = ledger
        self._device = device
        self._pool_pages = pool_pages
        self._number, self._post, self._given_up, self._resume = number, post, given_up, resume
        self.is_going = False
        self._is_own = False  # for itself
        self._kept: Collection[int] = ()
        self._shared: Collection[int] = ()
        self._wanted: tuple[Collection[int], Collection[int]] | None = None  # to `preempt`, once it has made room
        self._has_made_room = True  # the last time
        self._taken = (0, 0)  # see `_may_take_from_behind`: ticket, and how often

    @property
    def room(self) -> int:
        """Pages that it may ask for beside those that it has: all others that there are."""
        return self._pool_pages - self._pages.num_held if self._pool_pages else MANY

    # --- for others --------------------------------------------------------------------------------

    def preempt(self, kept: Collection[int], shared: Collection[int] = ()) -> None:
        """Give up all pages but those that exports have too; what `shared` ones hold, others keep, as far as known.
        `Device.preempted` is told in the end."""
        if self.is_going:
            self._wanted = (kept, shared) if self._is_own else self._wanted
            return
        if any(self._is_waited_for(run) for run in self._work.runs.values()):
            self._device.preempted(self._ledger.inferlet, 0, is_whole=False)
            return
        self.is_going, self._kept, self._shared = True, kept, shared
        self._stop(self._work.runs.values())
        self.go_on()

    def go_on(self) -> None:
        """Copy what the pages hold, if others want them and nothing is in flight any more."""
        if self.is_going and not self._is_own and not self._work.in_flight and self._swap.ticket is None:
            self._copy(self._pages.swappable_rows(self._kept), self._shared)

    # --- for itself --------------------------------------------------------------------------------

    def make_room(self, count: int, first: Command) -> bool:
        """So many of its own pages are to be given up for that command; False: there are none to be had, now or when
        what is in flight has come further, or it would be in vain."""
        needed = np.concatenate(self._work.rows_of(first))
        if not self._has_made_room or len(np.unique(needed)) > self._pool_pages:
            self._has_made_room = True
            return False
        rows = self._unused(np.concatenate([needed, *self._work.rows_behind(first)]))
        if not len(rows) and self._may_take_from_behind(first):
            rows = self._unused(needed)
        if len(rows):
            self.is_going = self._is_own = True
            self._copy(rows[: max(count, self._pool_pages // PART_OF_POOL)])
            return True
        if first.ticket in self._work.runs:
            younger = [run for run in self._work.runs.values() if run.ticket > first.ticket]
            younger = [run for run in younger if not self._is_waited_for(run)]
            self._stop(sorted(younger, key=lambda run: run.ticket)[-1:])
        return self._is_any_before(first)

    def _is_any_before(self, first: Command) -> bool:
        """Whether something in flight comes to its end, and lets go of its pages, without that command."""
        queues, growing = {first.queue.handle}, first.prepared
        for ticket, command in sorted(self._work.in_flight.items()):
            if command is first:
                continue
            is_later = ticket > first.ticket and command.queue.handle in queues
            is_behind = isinstance(growing, Growing) and self._pages.runs.is_behind(command.prepared, growing)
            if not is_later and not is_behind:
                return True
            queues.add(command.queue.handle)
        return False

    def _may_take_from_behind(self, first: Command) -> bool:
        """Whether what computes lost pages may take those of the command that wants them, which come back to it: not
        for ever, or two that it wants might drive each other out."""
        behind = self._work.behind(first)
        if behind is None:
            return False
        ticket, count = self._taken
        self._taken = (ticket, count + 1) if ticket == behind.ticket else (behind.ticket, 1)
        return self._taken[1] <= 2 * len(behind.prepared.rows)

    def _unused(self, needed: I64) -> I64:
        """Frames that may give up their pages for those: of what nothing waits for, the least recently used first, and
        then of what is staged, the last first."""
        staged = list(self._work.staged)
        rows = self._pages.unused_rows(np.concatenate([needed, *self._work.rows_in_flight()]))
        wanted_at = np.full(len(rows), len(staged))
        for place in range(len(staged) - 1, -1, -1):
            wanted_at[np.isin(rows, np.concatenate(rows_of(staged[place])))] = place
        found: I64 = rows[np.argsort(-wanted_at, kind="stable")]
        return found

    # --- both --------------------------------------------------------------------------------------

    def answered(self, ticket: int, result: object) -> bool:
        """The batcher's answer to the copying of pages; False if it is not."""
        if ticket != self._swap.ticket:
            return False
        self._copied(result)
        return True

    def stop(self) -> None:
        """The device is lost, or the guest has ended."""
        self.is_going = self._is_own = False
        self._wanted = None
        self._swap.stop()

    def _is_waited_for(self, run: Run) -> bool:
        """Whether a command that is sent waits for a run to go on: were the run stopped, it would go first."""
        growing = run.prepared
        return isinstance(growing, Growing) and any(
            self._pages.runs.is_behind(command.prepared, growing)
            for command in self._work.in_flight.values()
            if command is not run
        )

    def _stop(self, runs: Collection[Run]) -> None:
        stopped = [run.ticket for run in runs if run.preempt()]
        self._post([StopPlan(wire_ticket(self._ledger.inferlet, ticket)) for ticket in stopped])

    def _copy(self, rows: I64, shared: Collection[int] = ()) -> None:
        self._post([self._swap.copy(self._number(), rows, shared)])

    def _copied(self, result: object) -> None:
        is_own, wanted = self._is_own, self._wanted
        own = self._pages.own_pages() if is_own else frozenset()
        pages, is_whole = self._swap.end(result)
        self._given_up()
        self.is_going = self._is_own = False
        self._wanted = None
        if is_own:
            self._has_made_room = bool(pages)
            self._pages.grant([page for page in pages if page in own])
            pages = [page for page in pages if page not in own]
        else:
            pages += self._pages.surplus(keep=0)
        self._ledger.release(pages)
        if not is_own:
            is_whole = is_whole and not self._ledger.num_on_their_way
            self._device.preempted(self._ledger.inferlet, len(pages), is_whole=is_whole)
        if wanted is not None:
            self.preempt(*wanted)
        else:
            self._resume(not is_own)
