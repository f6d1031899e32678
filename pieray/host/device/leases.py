"""Pages that an inferlet asks the ResourceManager for: what its commands lack, and ahead of need.

    needed          staged commands or runs lack pages, or what they are to write is to be looked up: such a request
                    waits in line for `page_wait_s`, and where it fails, the command that cannot go on fails
    ahead of need   half of a usual lease is used up, or the guest expects to use more: granted at once or not at all

One request is under way at a time.  Where all the pages of the pool do not do, it gives up pages of its own, or waits
for what is in flight to let go of some (`pieray.host.device.preemption`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from pieray.errors import DeviceLost, InvalidRequest, OutOfPages, PierayError
from pieray.host.device.commands import Command, Run
from pieray.host.device.ledger import GRACE_S, Cancellable, Device, LedgerClient, no_answer
from pieray.host.device.preemption import Preemption
from pieray.host.device.prefixes import LEAST_PAGES, Prefixes
from pieray.host.device.rebuild import Rebuild
from pieray.host.device.swap import Swap
from pieray.host.device.work import Work
from pieray.messages.leases import Place
from pieray.pages.growing import Growing
from pieray.pages.space import PageSpace

IDLE_S = 0.1
"""An inferlet that has had nothing to compute for so long counts as idle."""
BEGIN_S = 1.0
"""One that has enqueued nothing for so long does not count as about to begin."""


class Leases:
    """Of one inferlet.  All methods are called with the instance's lock held."""

    def __init__(
        self,
        inferlet: int,
        device: Device,
        pages: PageSpace,
        work: Work,
        swap: Swap,
        ledger: LedgerClient,
        preemption: Preemption,
        prefixes: Prefixes | None,
        *,
        lease_pages: int,
        page_wait_s: float,
        pump: Callable[[], None],
        fail_first: Callable[[PierayError], None],
    ) -> None:
        """`lease_pages`: of a usual lease.  `pump` sends what can go now; `fail_first` fails the first of what is
        staged, unless its memory can be bound after all."""
        self._inferlet = inferlet
        self._device = device
        self._pages = pages
        self._work = work
        self._swap = swap
        self._ledger = ledger
        self._preemption = preemption
        self._prefixes = prefixes
        self._lease_pages = lease_pages
        self._page_wait_s = page_wait_s
        self._pump, self._fail_first = pump, fail_first
        self._is_closed = False
        self._is_leasing = False
        self._is_needed = False  # by a staged command: such a request waits in line
        self._timer: Cancellable | None = None
        self._own_timer: Cancellable | None = None  # while it waits for pages of its own
        self._num_late = 0  # requests that were given up, whose answers may come yet
        self._looking: Command | None = None  # whose pages are looked up with the lease that was asked for
        self._seeking: dict[int, Place] = {}  # of these, the pages that it had before
        self.num_found = 0  # tokens that were found
        self._makes_way_for: Run | None = None  # which lacks pages that others of its own are to give up
        self._asked_for: Command | None = None  # which alone fails if there are no pages for it; None: who is first
        self._is_idle = False  # nothing is leased ahead of need until there is a command again
        self.num_pins = 0
        """How often it is pinned."""
        self._num_expected = 0  # pages in use that are to be leased ahead of need; 0: no more than usual
        self._active_at = time.monotonic()  # when a command was last enqueued, or ended
        self._has_begun = False  # whether one has been

    # --- what the guest says of its need ---------------------------------------------------------------

    def wake(self) -> None:
        """The guest prepares for commands: `idle` is over."""
        self._is_idle = False

    def expect(self, num_pages: int) -> None:
        """So many pages more will be used soon: they are leased ahead of need, as far as there are any."""
        self.wake()
        self._num_expected = max(self._num_expected, self._pages.num_bound + num_pages) if num_pages else 0
        self.ask_for_pages()

    def idle(self) -> None:
        """No command will come for a while: memory leased ahead of need goes back, no more is, and others may have the
        rest at once."""
        self.taken()
        self.give_back()

    def taken(self) -> None:
        """Its pages have been given up for others: none are leased ahead of need until there is a command again."""
        self._is_idle, self._num_expected = True, 0

    def pin(self) -> None:
        """It does not count as idle until `unpin` has been called as often."""
        self.num_pins += 1

    def unpin(self) -> None:
        """Raises InvalidRequest unless it is pinned."""
        if not self.num_pins:
            raise InvalidRequest("unpin: this inferlet is not pinned, or was unpinned as often as pinned")
        self.num_pins -= 1

    def is_idle(self, now: float) -> bool:
        """Whether it has pages, and has had nothing to compute for a while, or is not going to."""
        is_waiting = self._work.num_outstanding or (self._is_leasing and self._is_needed)
        if is_waiting or self.num_pins or not self._pages.num_bound:
            return False
        return self._is_idle or now - self._active_at >= IDLE_S

    def reclaim(self) -> list[int]:
        """Take out what is leased ahead of need, others want it; no more than usual is leased again.

        What would be asked for again in a moment stays: for a run, and for a program that has just begun.
        """
        self._num_expected = 0
        keep = max(self._pages.num_reserved, self._num_soon())
        return [*self._pages.take_returned(), *self._pages.surplus(keep=keep)]

    def give_back(self) -> None:
        """Release what is not used any more; while nothing is to come, what is leased ahead of need too."""
        self._ledger.give_back(is_idle=self._is_idle and not self._work.staged and not self._work.runs)

    # --- the outbox tells ------------------------------------------------------------------------------

    def enqueued(self) -> None:
        """There is a command."""
        self._is_idle, self._has_begun = False, True
        self._active_at = time.monotonic()

    def ended(self, command: Command) -> None:
        """It has come to its end, or failed."""
        self.stopped(command)
        self._active_at = time.monotonic()

    def stopped(self, command: Command) -> None:
        """It is not in flight any more: nothing makes way for it."""
        if command is self._makes_way_for:
            self._makes_way_for = None

    def is_making_way(self) -> bool:
        """Whether nothing is to be sent, as pages are being given up for a run that lacks some."""
        if self._makes_way_for is not None and not self._makes_way_for.num_lacking():
            self._makes_way_for = None
        return self._makes_way_for is not None

    @property
    def is_waiting_for_own(self) -> bool:
        """Whether it waits for pages that others of its own use."""
        return self._own_timer is not None

    def close(self) -> None:
        """The guest has ended: nothing is asked for any more."""
        self._num_late = 0
        self._is_late()
        self._is_closed = True

    def fail_all(self) -> None:
        """The device is lost: what was asked for is never answered."""
        self._asked_for = None
        self._num_late = 0
        self._is_late()
        self._is_leasing = self._is_needed = False
        self._looking = None

    # --- asking ----------------------------------------------------------------------------------------

    def ask_for_pages(self) -> None:
        """Ask for what the staged commands lack, or, ahead of need, for a lease when half of one is used up.

        Only need waits in line: a request ahead of need is granted at once or not at all.
        """
        if self._is_leasing or self._is_closed or self._preemption.is_going:
            return
        is_waiting = self._ask()
        if self._own_timer is not None and not is_waiting:
            self._own_timer.cancel()
            self._own_timer = None
        elif self._own_timer is None and is_waiting:
            self._own_timer = self._ledger.call_later(self._page_wait_s, self._own_overdue)

    def _ask(self) -> bool:
        """Whether pages of its own are waited for instead, see Preemption."""
        expected = self._num_lacking_ahead()
        is_enough = self._is_idle or (self._pages.num_spare * 2 >= self._lease_pages and not expected)
        if is_enough and not self._work.staged and not self._work.runs:
            return False
        short = max(self._pages.stager.shortfall(c.prepared for c in self._work.staged), self._work.num_lacking)
        wanted = sum(run.num_wanted() for run in self._work.runs.values())
        num_lacking = sum(run.num_lacking() for run in self._work.runs.values())
        looking = self._work.staged[0] if self._work.num_flushed else None
        if looking is not None and not looking.hashes and not self.sought(looking):
            looking = None
        if short == 0 and wanted == 0 and is_enough and looking is None:
            return False
        is_needed = short + num_lacking > 0 or looking is not None
        if not is_needed and not self._device.is_chosen:
            return False  # what it needs first will say which device group it computes on
        count = short + num_lacking if is_needed else max(wanted, expected, self._lease_pages)
        room, self._asked_for = self._preemption.room, None
        if count > room:
            first, least = self._first_lacking()
            if not is_needed or first is None:
                count = max(room, 0)
            elif least > room and self._preemption.make_room(least - room, first):
                self._makes_way_for = first if isinstance(first, Run) and first.is_sent else None
                return True
            else:  # the ResourceManager says what it is that cannot be had
                count, self._asked_for = least, first
        if count or looking is not None:
            is_more = short + num_lacking > 0 and self._asked_for is None
            num_more = max(0, self._num_soon() - num_lacking, expected) if is_more else 0
            self._lease(count, num_more, looking, is_needed=is_needed)
        return False

    def _first_lacking(self) -> tuple[Command | None, int]:
        """Who goes first of those that lack pages, and without how many more it cannot go on."""
        lacking = [run for run in self._work.runs.values() if run is self._work.lacking or run.num_lacking()]
        if lacking:
            return min(lacking, key=lambda run: run.ticket), 1
        first = self._work.staged[0] if self._work.num_flushed else None
        return first, 0 if first is None else self._pages.stager.shortfall([first.prepared])

    def _own_overdue(self) -> None:
        """What is in flight has kept its pages for too long."""
        self._own_timer = None
        self._asked_for, _ = self._first_lacking()
        self._is_needed = True
        self._fail_lease(
            OutOfPages(
                f"page_wait_s: the limit is {self._page_wait_s:g} s; this inferlet holds {self._pages.num_held} pages, "
                "its own commands use them and have not come to their end: wait for some before more are enqueued"
            )
        )

    def _lease(self, count: int, num_more: int, looking: Command | None, *, is_needed: bool) -> None:
        self._is_leasing, self._is_needed = True, is_needed
        wait_s = self._page_wait_s if is_needed else 0.0
        hashes, self._looking = b"", looking
        if looking is not None:
            self._seeking = self.sought(looking)
            hashes = b"".join([place.name for place in self._seeking.values()] or looking.hashes or ())
        try:
            self._device.lease(self._inferlet, count, wait_s, hashes, self._work.num_computed, num_more)
            self._timer = self._ledger.call_later(wait_s + GRACE_S, self._lease_overdue)
        except DeviceLost as error:
            self._fail_lease(error)

    def _num_soon(self) -> int:
        """Pages ahead of need that will be used soon, a usual lease at most."""
        if not self._has_begun:
            is_new = not self._is_idle and time.monotonic() - self._active_at < BEGIN_S
            return self._lease_pages if is_new else 0
        staged = [c.prepared for c in self._work.staged if isinstance(c, Run) and isinstance(c.prepared, Growing)]
        num_first = sum(len(growing.tail) - growing.num_bound for growing in staged)
        return min(num_first + sum(run.num_wanted() for run in self._work.runs.values()), self._lease_pages)

    def _num_lacking_ahead(self) -> int:
        """Pages that are expected to be used, and that there are not; what is reached is expected no more."""
        ahead = self._num_expected - self._pages.num_bound
        if ahead <= 0:
            self._num_expected = 0
        return max(0, ahead - self._pages.num_spare)

    def _lease_overdue(self) -> None:
        """The ResourceManager promises an answer in time: this one is frozen, or out of reach."""
        self._timer = None
        self._num_late += 1
        self._fail_lease(no_answer(self._page_wait_s))

    def _is_late(self) -> bool:
        """Whether the answer that has come is to a request that was given up."""
        if self._num_late:
            self._num_late -= 1
            return True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return False

    # --- what comes of it --------------------------------------------------------------------------------

    def granted(self, pages: Sequence[int], num_found: int = 0, *, is_own: bool = False) -> None:
        """A lease came: one that was asked for here, or by the guest itself (`is_own`).  The first `num_found` pages
        hold what the next command was to write."""
        unwanted = pages[:num_found]
        if not is_own and not self._is_late():
            self._is_leasing = False
            unwanted = self._adopt(unwanted)
        self._ledger.release(unwanted)
        self._pages.grant(pages[num_found:])
        self._pump()

    def _adopt(self, found: Sequence[int]) -> Sequence[int]:
        """Pages were found, perhaps, for the command that they were looked up for; those that it does not take."""
        command, self._looking = self._looking, None
        seeking, self._seeking = self._seeking, {}
        if command is not None and seeking:
            command.is_sought = True
            if command not in self._work.staged:
                return found
            rows = command.prepared.rows
            computed = np.concatenate([rows[:0], *(c.wanted for c in self._work.staged if isinstance(c, Rebuild))])
            return self._swap.found(rows[~np.isin(rows, computed)], list(seeking), found)
        if command is not None:
            command.hashes = []
        if not found or command is None or self._prefixes is None or command not in self._work.staged:
            return found
        num_pages = self._prefixes.adopt(command, found, self._work.unfinished(command))
        self.num_found += num_pages * self._pages.page_size
        return found[num_pages:]

    def lease_failed(self, error: PierayError) -> None:
        """No lease: the command that cannot be bound fails, those behind it get their turn.

        A refusal ahead of need fails nothing: a command that has come meanwhile asks anew, and waits in line.
        """
        if not self._is_late():
            self._fail_lease(error)

    def _fail_lease(self, error: PierayError) -> None:
        self._is_leasing = False
        self._adopt(())
        if not self._is_needed and self._num_expected:  # fewer may be there
            self._num_expected -= -(-self._num_lacking_ahead() // 2)
        asked_for, self._asked_for = self._asked_for, None
        if isinstance(asked_for, Run) and asked_for.ticket in self._work.runs:
            if asked_for.is_starving():
                asked_for.give_up(error)
                self._pump()  # those behind it ask for what they lack
                return
            if asked_for is not self._work.lacking or not self._work.num_lacking:
                return  # else it is the first of what is staged that cannot go without them
        starving = next((run for run in self._work.runs.values() if run.is_starving()), None)
        if not self._work.num_flushed and starving is None:
            return
        if self._is_needed:
            if self._work.num_flushed:
                self._fail_first(error)
            elif starving is not None:
                starving.give_up(error)
        self._pump()

    # --- looking up, with a lease, what a command is to write or to use ----------------------------------

    def sought(self, command: Command) -> dict[int, Place]:
        """Pages of the next command that are away and are to be looked up by what they held first, or are being."""
        if command.is_sought or not self._swap.has_names:
            return {}
        sought = self._swap.sought(command.prepared.rows)
        command.is_sought = not sought
        return sought

    def is_to_be_found(self, command: Command) -> bool:
        """Whether pages of the next command are to be looked up, or are being: it waits for that."""
        if self._prefixes is None or command.num_skippable < self._pages.page_size:
            return False
        if command.hashes is None:
            is_stopped = isinstance(command, Run) and command.is_stopped
            command.hashes = [] if is_stopped else self._prefixes.hashes(command)
            if len(command.hashes) < LEAST_PAGES and not self._pages.stager.shortfall([command.prepared]):
                command.hashes = []
        return bool(command.hashes)
