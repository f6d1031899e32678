"""Commands of one inferlet on their way to the batcher: staged in program order, bound to memory, sent, answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt

from pieray.errors import DeviceLost, InvalidRequest, OutOfPages, PierayError, QuotaExceeded
from pieray.host.device.commands import INTERNAL, TICKET_MASK, Command, Pass, Queue, Restore, Run, wire_ticket
from pieray.host.device.ledger import GRACE_S, CallLater, Cancellable, Device, LedgerClient, no_answer
from pieray.host.device.preemption import Preemption, Work
from pieray.host.device.prefixes import LEAST_PAGES, Prefixes
from pieray.host.device.rebuild import Rebuild
from pieray.host.device.swap import Swap
from pieray.host.device.tickets import Kind, Ticket, TicketTable
from pieray.host.device.transfers import Transfers
from pieray.messages import CopyTokens, ExtendPlan, Message, Output, StopPlan
from pieray.messages.leases import Place
from pieray.pages.growing import Growing
from pieray.pages.handles import PageSpace
from pieray.pages.lineage import Lineage

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

MAX_STAGED = 64
IDLE_S = 0.1
"""An inferlet that has had nothing to compute for so long counts as idle."""
BEGIN_S = 1.0
"""One that has enqueued nothing for so long does not count as about to begin."""


class ResultTicket(Ticket):
    """What is computed for a guest: of a pass, which closes with the last of its outputs, or by itself."""

    __slots__ = ("_outbox", "pass_")

    def __init__(self, kind: Kind, outbox: Outbox) -> None:
        super().__init__(kind)
        self.pass_: Pass | None = None
        self._outbox = outbox

    def left(self, *, is_taken: bool) -> None:
        self._outbox.left(self.number, self.pass_, is_taken=is_taken)


class Outbox:
    """Sends what is staged as memory comes.  All methods are called with the instance's lock held."""

    def __init__(
        self,
        inferlet: int,
        device: Device,
        pages: PageSpace,
        tickets: TicketTable,
        *,
        lease_pages: int,
        page_wait_s: float,
        transfers: Transfers,
        call_later: CallLater,
        lineage: Lineage,
        prefixes: Prefixes | None = None,
        pool_pages: int = 0,
        priority: int = 0,
    ) -> None:
        """`prefixes` None: all is computed, whatever pages there are.  `pool_pages`: pages of the device group, 0 for
        unknown: then nothing is dropped that would have to be computed again.  `priority`: of the host's own
        commands."""
        self._inferlet = inferlet
        self._device = device
        self._pages = pages
        self._tickets = tickets
        self._lineage = lineage
        self._prefixes = prefixes
        self._seeking: dict[int, Place] = {}  # of these, the pages that it had before
        self._looking: Command | None = None  # whose pages are looked up with the lease that was asked for
        self.num_found = 0  # tokens that were found
        self._num_computed = 0  # by commands that have finished
        self._lease_pages = lease_pages
        self._page_wait_s = page_wait_s
        work = Work()
        self._staged, self._in_flight, self._runs = work.staged, work.in_flight, work.runs
        self._is_leasing = False
        self._is_lease_needed = False  # by a staged command: such a request waits in line
        self._lease_timer: Cancellable | None = None
        self._num_late = 0  # requests that were given up, whose answers may come yet
        self._is_closed = False
        self._num_flushed = 0
        self._num_lacking = 0  # pages for a run without which the first of what is staged cannot go
        self._lacking: Run | None = None  # that run
        self._makes_way_for: Run | None = None  # which lacks pages that others of its own are to give up
        self._asked_for: Command | None = None  # which alone fails if there are no pages for it; None: who is first
        self._is_idle = False  # nothing is leased ahead of need until there is a command again
        self._num_pins = 0
        self._num_expected = 0  # pages in use that are to be leased ahead of need; 0: no more than usual
        self._active_at = time.monotonic()  # when a command was last enqueued, or ended
        self._has_begun = False  # whether one has been
        self.swap = Swap(inferlet, pages, lineage, pool_pages, prefixes)
        self._host_queue = Queue(0, priority)  # of commands of the host's own
        self.passes: dict[int, Pass] = {}
        self.transfers = transfers
        self.ledger = LedgerClient(inferlet, device, pages, tickets.limit, call_later)
        self.preemption = Preemption(
            pages,
            self.swap,
            work,
            self.ledger,
            device,
            pool_pages=pool_pages,
            number=tickets.number,
            post=self._post,
            given_up=self._given_up,
            resume=self._resume,
        )
        self._own_timer: Cancellable | None = None  # while it waits for pages of its own

    @property
    def num_computed(self) -> int:
        """Tokens that were computed."""
        return self._num_computed + sum(run.num_computed for run in self._runs.values())

    def usage(self) -> dict[str, int]:
        """Tokens computed, tokens that were there already, and pages that were given up for others, so far."""
        return {
            "tokens_computed": self.num_computed,
            "tokens_found": self.num_found,
            "pages_swapped": self.swap.num_out,
        }

    @property
    def num_outstanding(self) -> int:
        return len(self._staged) + len(self._in_flight)

    def check_room(self) -> None:
        """Raise QuotaExceeded over `Limits.tickets` commands: one whose ticket was cancelled still counts here."""
        if self.num_outstanding >= self._tickets.limit:
            raise QuotaExceeded(
                f"tickets: the limit is {self._tickets.limit}, as many commands are outstanding; one more was enqueued"
            )

    def stage(self, command: Command) -> None:
        """Enqueue; past MAX_STAGED what came before is sent."""
        self._staged.append(command)
        self._is_idle, self._has_begun = False, True
        self._active_at = time.monotonic()
        command.queue.outstanding[command.ticket] = None
        if isinstance(command, Pass):
            self.passes[command.ticket] = command
        if len(self._staged) > MAX_STAGED:
            self.flush(keep=1)

    def ask(self, pass_: Pass, kind: Kind, output: Callable[[int], Output], num_bytes: int) -> int:
        """Ask a pass that is not sent yet for one more output, made for its ticket as it travels; the ticket.

        `num_bytes` of its value (0: a few).  Raises QuotaExceeded.
        """
        result = self.open_result(kind, num_bytes, "the values of this output have")
        result.pass_ = pass_
        pass_.num_open += 1
        if not pass_.outputs:
            self._tickets.uncount(pass_.ticket)
        pass_.outputs.append(output(wire_ticket(self._inferlet, result.number)))
        return result.number

    def open_result(self, kind: Kind, num_bytes: int, what: str) -> ResultTicket:
        """An open ticket for a result of so many bytes; `what`: see Transfers.  Raises QuotaExceeded."""
        ticket = ResultTicket(kind, self)
        number = self._tickets.add(ticket)
        try:
            self.transfers.expect(number, num_bytes, what)
        except BaseException:
            self._tickets.drop((number,))
            raise
        return ticket

    def left(self, result: int, pass_: Pass | None, *, is_taken: bool) -> None:
        """A result was taken, or forgotten: one of a pass that is not sent yet is not computed then."""
        with self._tickets.lock:
            if pass_ is not None and not is_taken and not pass_.is_sent:
                pass_.outputs[:] = [o for o in pass_.outputs if o.ticket & TICKET_MASK != result]
                self.transfers.ended(result)
            self.transfers.forgotten(result)
            if pass_ is None:
                return
            pass_.num_open -= 1
            if not pass_.num_open:
                self._tickets.drop((pass_.ticket,))

    def flush(self, keep: int = 0) -> None:
        """The guest waits or flushes: all that is staged, but the last `keep`, may go."""
        if self._staged:
            self._num_flushed = len(self._staged) - keep
            self._pump()
        else:
            self._post(self.swap.ahead())
            self._give_back()
            self._lease_ahead()

    def writers_of(self, rows: Collection[int]) -> set[int]:
        """Tickets of the unfinished commands that write to those frames."""
        commands = (*self._in_flight.values(), *self._staged)
        return {c.ticket for c in commands if any(row in rows for row, _ in c.prepared.writes)}

    def wake(self) -> None:
        """The guest prepares for commands: `idle` is over."""
        self._is_idle = False

    def expect(self, num_pages: int) -> None:
        """So many pages more will be used soon: they are leased ahead of need, as far as there are any."""
        self.wake()
        self._num_expected = max(self._num_expected, self._pages.num_bound + num_pages) if num_pages else 0
        self._lease_ahead()

    def reclaim(self) -> list[int]:
        """Take out what is leased ahead of need, others want it; no more than usual is leased again.

        What would be asked for again in a moment stays: for a run, and for a program that has just begun.
        """
        self._num_expected = 0
        keep = max(self._pages.num_reserved, self._num_soon())
        return [*self._pages.take_returned(), *self._pages.surplus(keep=keep)]

    def idle(self) -> None:
        """No command will come for a while: memory leased ahead of need goes back, no more is, and others may have the
        rest at once."""
        self._is_idle, self._num_expected = True, 0
        self._give_back()

    def pin(self) -> None:
        """It does not count as idle until `unpin` has been called as often."""
        self._num_pins += 1

    def unpin(self) -> None:
        """Raises InvalidRequest unless it is pinned."""
        if not self._num_pins:
            raise InvalidRequest("unpin: this inferlet is not pinned, or was unpinned as often as pinned")
        self._num_pins -= 1

    def is_idle(self, now: float) -> bool:
        """Whether it has pages, and has had nothing to compute for a while, or is not going to."""
        is_waiting = self.num_outstanding or (self._is_leasing and self._is_lease_needed)
        if is_waiting or self._num_pins or not self._pages.num_bound:
            return False
        return self._is_idle or now - self._active_at >= IDLE_S

    # --- pages given up, see pieray.host.device.preemption --------------------------------------------------

    def preempt(self, kept: Collection[int], shared: Collection[int] = ()) -> None:
        """See `Preemption.preempt`."""
        if not self._is_closed:
            self.preemption.preempt(kept, shared)

    def _resume(self, is_for_others: bool) -> None:
        """Pages have been given up."""
        if is_for_others:
            self._is_idle, self._num_expected = True, 0
        self._pump()

    def _given_up(self) -> None:
        """What was to be computed on top of what is lost by now is planned anew."""
        outdated = [c for c in self._staged if isinstance(c, Rebuild) and self._pages.is_lost(c.given)]
        for rebuild in outdated:
            self._staged.remove(rebuild)
            self._num_flushed -= 1
            self.swap.take_back(rebuild)

    def _uses_lost(self, command: Command) -> bool:
        """Whether another command is to compute what this one uses before it."""
        return self.swap.has_lost and not isinstance(command, Rebuild) and self._pages.is_lost(command.prepared.rows)

    def _rebuild_first(self, rows: I64) -> None:
        """The next command uses frames that are lost: the next is the one that computes them again."""
        if (rebuild := self.swap.rebuild(self._tickets.number(), self._host_queue, rows)) is not None:
            self._num_flushed += 1
        else:
            rebuild = next(c for c in self._staged if isinstance(c, Rebuild) and self._pages.is_lost(c.prepared.rows))
            self._staged.remove(rebuild)
        self._staged.appendleft(rebuild)

    def restore(self, rows: I64) -> int | None:
        """The frames are to have their memory back; the command's ticket, or None if they have it."""
        rows = self._pages.unbound(rows)
        if not len(rows) or self._is_closed:
            return None
        command = Restore(self._tickets.number(), self._host_queue, self._pages.hold(rows), self._pages)
        self.stage(command)
        self._num_flushed = len(self._staged)
        self._pump()
        return command.ticket

    def prefetch(self) -> None:
        """The program is about to go on: what was given up for others is brought back."""
        if self._pages.num_swapped and not self.preemption.is_going and not self._staged:
            self.restore(self._pages.away_rows())

    # --- sending -----------------------------------------------------------------------------------

    def _give_back(self) -> None:
        self.ledger.give_back(is_idle=self._is_idle and not self._staged and not self._runs)

    def _pump(self) -> None:
        """Send what is flushed as far as memory is bound; ask for what is short.

        What is not flushed stays, also when a lease comes: its outputs may not all have been asked for yet.
        """
        messages: list[Message] = []
        self._num_lacking, self._lacking = 0, None
        if self._makes_way_for is not None and not self._makes_way_for.num_lacking():
            self._makes_way_for = None
        while self._num_flushed and not self.preemption.is_going and self._makes_way_for is None:
            command = self._staged[0]
            if self._sought(command):
                break
            if self._uses_lost(command):
                self._rebuild_first(command.prepared.rows)
                continue
            if self._is_to_be_found(command) or not self._bind(command, messages):
                break
            messages += self.swap.ahead()
            self._staged.popleft()
            self._num_flushed -= 1
            if command.prepared.error is not None:  # what it reads was to be written by a command that has failed
                self._settle(command, command.prepared.error)
                continue
            if isinstance(command, Run) and command.is_stopped:
                if command.prepared.copies:
                    messages.append(self._copy_on_write(command))
                    command.trace(self._lineage)
                self._settle(command, ["", ""])
                continue
            command.is_sent = True
            command.trace(self._lineage)
            self._in_flight[command.ticket] = command
            if isinstance(command, Run):
                self._runs[command.ticket] = command
            if command.prepared.copies and command.writes_behind_copies:
                messages.append(self._copy_on_write(command))
            messages += command.messages(self._inferlet)
        if not self.preemption.is_going:
            messages += self._grow_runs()
        messages += self.swap.ahead()
        self._post(messages)
        self._give_back()
        self._lease_ahead()

    def _sought(self, command: Command) -> dict[int, Place]:
        """Pages of the next command that are away and are to be looked up by what they held first, or are being."""
        if command.is_sought or not self.swap.has_names:
            return {}
        sought = self.swap.sought(command.prepared.rows)
        command.is_sought = not sought
        return sought

    def _is_to_be_found(self, command: Command) -> bool:
        """Whether pages of the next command are to be looked up, or are being: it waits for that."""
        if self._prefixes is None or command.num_skippable < self._pages.page_size:
            return False
        if command.hashes is None:
            is_stopped = isinstance(command, Run) and command.is_stopped
            command.hashes = [] if is_stopped else self._prefixes.hashes(command)
            if len(command.hashes) < LEAST_PAGES and not self._pages.shortfall([command.prepared]):
                command.hashes = []
        return bool(command.hashes)

    def _unfinished(self, but: Command) -> list[Command]:
        return [c for c in (*self._in_flight.values(), *self._staged) if c is not but]

    def closing(self, handles: U32) -> None:
        """Page handles are about to be closed: what is lost with them is to be found by others."""
        if self._prefixes is not None:
            self._prefixes.closing(handles, (*self._in_flight.values(), *self._staged))

    def _bind(self, command: Command, messages: list[Message]) -> bool:
        """Bind memory; first to the runs before it, up to the last page that both use: it waits for these."""
        for run in self._runs.values():
            if isinstance(run.prepared, Growing) and (count := self._pages.num_before(run.prepared, command.prepared)):
                self._num_lacking = count - self._extend(run, run.prepared, count, messages)
                if self._num_lacking:
                    self._lacking = run
                    return False
        return self._pages.bind(command.prepared)

    def _extend(self, run: Run, growing: Growing, count: int, messages: list[Message]) -> int:
        pages = self._pages.grow(growing, count)
        if len(pages):
            messages += self.swap.ahead()
            messages.append(ExtendPlan(wire_ticket(self._inferlet, run.ticket), pages.tobytes()))
        return len(pages)

    def _grow_runs(self) -> list[Message]:
        """Bind pages that runs will soon need, from what staged commands leave."""
        messages: list[Message] = []
        for run in self._runs.values():
            if (wanted := run.num_wanted()) and isinstance(run.prepared, Growing):
                self._extend(run, run.prepared, wanted, messages)
            run.grown()
        return messages

    def stop(self, run: Run) -> None:
        """End a run after the step in progress; of one that is not sent, copy-on-write alone will be."""
        if isinstance(run.prepared, Growing):
            self._pages.stop_growing(run.prepared)
        if run.ticket in self._runs:
            self._post([StopPlan(wire_ticket(self._inferlet, run.ticket))])

    def _copy_on_write(self, command: Command) -> Message:
        queue = command.queue
        return CopyTokens(
            wire_ticket(self._inferlet, INTERNAL),
            self._inferlet,
            queue.handle,
            queue.priority,
            [list(c) for c in command.prepared.copies],
        )

    def _post(self, messages: list[Message]) -> None:
        try:
            if messages:
                self._device.post(messages)
        except DeviceLost as error:
            self.fail_all(error)

    def _lease_ahead(self) -> None:
        """Ask for what the staged commands lack, or, ahead of need, for a lease when half of one is used up.

        Only need waits in line: a request ahead of need is granted at once or not at all.
        """
        if self._is_leasing or self._is_closed or self.preemption.is_going:
            return
        is_waiting = self._ask_for_pages()
        if self._own_timer is not None and not is_waiting:
            self._own_timer.cancel()
            self._own_timer = None
        elif self._own_timer is None and is_waiting:
            self._own_timer = self.ledger.call_later(self._page_wait_s, self._own_overdue)

    def _ask_for_pages(self) -> bool:
        """Whether pages of its own are waited for instead, see Preemption."""
        expected = self._num_lacking_ahead()
        is_enough = self._is_idle or (self._pages.num_spare * 2 >= self._lease_pages and not expected)
        if is_enough and not self._staged and not self._runs:
            return False
        short = max(self._pages.shortfall(c.prepared for c in self._staged), self._num_lacking)
        wanted = sum(run.num_wanted() for run in self._runs.values())
        num_lacking = sum(run.num_lacking() for run in self._runs.values())
        looking = self._staged[0] if self._num_flushed else None
        if looking is not None and not looking.hashes and not self._sought(looking):
            looking = None
        if short == 0 and wanted == 0 and is_enough and looking is None:
            return False
        is_needed = short + num_lacking > 0 or looking is not None
        count = short + num_lacking if is_needed else max(wanted, expected, self._lease_pages)
        room, self._asked_for = self.preemption.room, None
        if count > room:
            first, least = self._first_lacking()
            if not is_needed or first is None:
                count = max(room, 0)
            elif least > room and self.preemption.make_room(least - room, first):
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
        lacking = [run for run in self._runs.values() if run is self._lacking or run.num_lacking()]
        if lacking:
            return min(lacking, key=lambda run: run.ticket), 1
        first = self._staged[0] if self._num_flushed else None
        return first, 0 if first is None else self._pages.shortfall([first.prepared])

    def _own_overdue(self) -> None:
        """What is in flight has kept its pages for too long."""
        self._own_timer = None
        self._asked_for, _ = self._first_lacking()
        self._is_lease_needed = True
        self._fail_lease(
            OutOfPages(
                f"page_wait_s: the limit is {self._page_wait_s:g} s; this inferlet holds {self._pages.num_held} pages, "
                "its own commands use them and have not come to their end: wait for some before more are enqueued"
            )
        )

    def _lease(self, count: int, num_more: int, looking: Command | None, *, is_needed: bool) -> None:
        self._is_leasing, self._is_lease_needed = True, is_needed
        wait_s = self._page_wait_s if is_needed else 0.0
        hashes, self._looking = b"", looking
        if looking is not None:
            self._seeking = self._sought(looking)
            hashes = b"".join([place.name for place in self._seeking.values()] or looking.hashes or ())
        try:
            self._device.lease(self._inferlet, count, wait_s, hashes, self.num_computed, num_more)
            self._lease_timer = self.ledger.call_later(wait_s + GRACE_S, self._lease_overdue)
        except DeviceLost as error:
            self._fail_lease(error)

    def _num_soon(self) -> int:
        """Pages ahead of need that will be used soon, a usual lease at most."""
        if not self._has_begun:
            is_new = not self._is_idle and time.monotonic() - self._active_at < BEGIN_S
            return self._lease_pages if is_new else 0
        staged = [c.prepared for c in self._staged if isinstance(c, Run) and isinstance(c.prepared, Growing)]
        num_first = sum(len(growing.tail) - growing.num_bound for growing in staged)
        return min(num_first + sum(run.num_wanted() for run in self._runs.values()), self._lease_pages)

    def _num_lacking_ahead(self) -> int:
        """Pages that are expected to be used, and that there are not; what is reached is expected no more."""
        ahead = self._num_expected - self._pages.num_bound
        if ahead <= 0:
            self._num_expected = 0
        return max(0, ahead - self._pages.num_spare)

    def _lease_overdue(self) -> None:
        """The ResourceManager promises an answer in time: this one is frozen, or out of reach."""
        self._lease_timer = None
        self._num_late += 1
        self._fail_lease(no_answer(self._page_wait_s))

    def _is_late(self) -> bool:
        """Whether the answer that has come is to a request that was given up."""
        if self._num_late:
            self._num_late -= 1
            return True
        if self._lease_timer is not None:
            self._lease_timer.cancel()
            self._lease_timer = None
        return False

    def granted(self, pages: Sequence[int], num_found: int = 0, *, is_own: bool = False) -> None:
        """A lease came: one that was asked for here, or by the guest itself (`is_own`).  The first `num_found` pages
        hold what the next command was to write."""
        unwanted = pages[:num_found]
        if not is_own and not self._is_late():
            self._is_leasing = False
            unwanted = self._adopt(unwanted)
        self.ledger.release(unwanted)
        self._pages.grant(pages[num_found:])
        self._pump()

    def _adopt(self, found: Sequence[int]) -> Sequence[int]:
        """Pages were found, perhaps, for the command that they were looked up for; those that it does not take."""
        command, self._looking = self._looking, None
        seeking, self._seeking = self._seeking, {}
        if command is not None and seeking:
            command.is_sought = True
            if command not in self._staged:
                return found
            rows = command.prepared.rows
            computed = np.concatenate([rows[:0], *(c.wanted for c in self._staged if isinstance(c, Rebuild))])
            return self.swap.found(rows[~np.isin(rows, computed)], list(seeking), found)
        if command is not None:
            command.hashes = []
        if not found or command is None or self._prefixes is None or command not in self._staged:
            return found
        num_pages = self._prefixes.adopt(command, found, self._unfinished(command))
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
        if not self._is_lease_needed and self._num_expected:  # fewer may be there
            self._num_expected -= -(-self._num_lacking_ahead() // 2)
        asked_for, self._asked_for = self._asked_for, None
        if isinstance(asked_for, Run) and asked_for.ticket in self._runs:
            if asked_for.is_starving():
                asked_for.give_up(error)
                self._pump()  # those behind it ask for what they lack
                return
            if asked_for is not self._lacking or not self._num_lacking:
                return  # else it is the first of what is staged that cannot go without them
        starving = next((run for run in self._runs.values() if run.is_starving()), None)
        if not self._num_flushed and starving is None:
            return
        if self._is_lease_needed:
            if self._num_flushed:
                messages: list[Message] = []
                if not self._bind(self._staged[0], messages):
                    self._num_flushed -= 1
                    self._settle(self._staged.popleft(), error)
                self._post(messages)
            elif starving is not None:
                starving.give_up(error)
        self._pump()

    def drew(self, ticket: int, tokens: bytes, logprobs: bytes, counts: bytes) -> None:
        """What a run has drawn: tokens (u32), their log-probabilities (f32, or b""), and its counts (u32[3])."""
        run = self._runs.get(ticket)
        if run is None:
            return
        wants_pages = run.told(tokens, logprobs, counts)
        if not run.is_entered:
            run.is_entered = True
            self._enter(run)
        if self.swap.has_names:
            self.swap.came_back(run.prepared.rows)
        if wants_pages:
            self._pump()

    def _enter(self, command: Command) -> None:
        """What a command has written is to be found by others."""
        if self._prefixes is not None and command.queue.is_reusing:
            prepared = command.prepared
            rows = prepared.line if isinstance(prepared, Growing) else prepared.rows[: prepared.num_pages]
            self._pages.settle()
            self._prefixes.enter(rows, self._unfinished(command))

    def answered(self, ticket: int, result: object) -> None:
        """The batcher's answer to a command or an output."""
        command = self._in_flight.pop(ticket, None)
        if command is not None:
            if isinstance(command, Run) and command.is_to_go_on(result):
                self._go_on(command)
            else:
                self._settle(command, result)
            self.preemption.go_on()
            if self._num_lacking or self._own_timer is not None:  # what waits for the pages of others of its own
                self._pump()
        elif not self.preemption.answered(ticket, result) and ticket != INTERNAL:
            self.transfers.ended(ticket)
            self._tickets.resolve(ticket, result)

    def _go_on(self, run: Run) -> None:
        """A run was stopped for others: it is to be sent again, ahead of all that came behind it."""
        del self._runs[run.ticket]
        if run is self._makes_way_for:
            self._makes_way_for = None
        self._num_computed += run.num_computed
        run.go_on()
        before = sum(isinstance(c, Run) and not c.is_sent and c.ticket < run.ticket for c in self._staged)
        self._staged.insert(before, run)
        self._num_flushed += 1

    def _settle(self, command: Command, result: object) -> None:
        self._runs.pop(command.ticket, None)
        if command is self._makes_way_for:
            self._makes_way_for = None
        self._active_at = time.monotonic()
        value = command.settled(result)
        if command.is_sent and not isinstance(result, PierayError):
            self._num_computed += command.num_computed
            if self.swap.has_names:
                self.swap.came_back(command.prepared.rows)
            if isinstance(command, Run) or command.num_computed >= self._pages.page_size:
                self._enter(command)
        self._pages.finish(command.prepared, is_ok=not isinstance(result, PierayError))
        if isinstance(command, Rebuild):
            self._pages.end_rebuild(command.prepared)
        self._tickets.resolve(command.ticket, value)
        self.transfers.ended(command.ticket)
        if isinstance(command, Pass):
            self.passes.pop(command.ticket, None)
            if isinstance(result, PierayError):
                for ticket in command.output_tickets():
                    self._tickets.resolve(ticket, result)
                    self.transfers.ended(ticket)
        self.ledger.finished(command.ticket)
        queue = command.queue
        queue.outstanding.pop(command.ticket, None)
        if queue.syncs:
            for sync in queue.synced():
                self._tickets.resolve(sync, None)

    def close(self) -> None:
        """The guest has ended: drop what is not sent; its pages come back when the lease is closed.

        From here on nothing is asked of the device: a lease that came after CloseLease would never end.
        """
        self._num_late = 0
        self._is_late()
        self._is_closed = True
        self.preemption.stop()
        if self._prefixes is not None:
            self._prefixes.enter_all((*self._in_flight.values(), *self._staged))
        self.passes.clear()
        self._runs.clear()
        self._staged.clear()
        self._num_flushed = 0
        self.ledger.close()
        self.transfers.close()

    def fail_all(self, error: PierayError) -> None:
        """The device is lost: fail everything staged and in flight; what was asked of it is never answered."""
        commands: list[Command] = [*self._in_flight.values(), *self._staged]
        self._in_flight.clear()
        self._staged.clear()
        self._num_flushed = self._num_lacking = 0
        self._lacking = self._asked_for = None
        self._num_late = 0
        self._is_late()
        self._is_leasing = self._is_lease_needed = False
        self._looking = None
        self.preemption.stop()
        for command in commands:
            self._settle(command, error)
        self.ledger.fail_all(error)
