"""Commands of one inferlet on their way to the batcher: staged in program order, bound to memory, sent, answered."""

from __future__ import annotations

from collections.abc import Collection

from pieray.arrays import I64, U32
from pieray.errors import DeviceLost, PierayError, QuotaExceeded
from pieray.host.device.commands import INTERNAL, Command, Pass, Queue, Restore, Run, wire_ticket
from pieray.host.device.leases import Leases
from pieray.host.device.ledger import CallLater, Device, LedgerClient
from pieray.host.device.preemption import Preemption
from pieray.host.device.prefixes import Prefixes
from pieray.host.device.rebuild import Rebuild
from pieray.host.device.results import OwnMessages, Results
from pieray.host.device.swap import Swap
from pieray.host.device.transfers import Transfers
from pieray.host.device.work import Work
from pieray.host.tickets import TicketTable
from pieray.messages import ExtendPlan, Message, StopPlan
from pieray.pages.growing import Growing
from pieray.pages.lineage import Lineage
from pieray.pages.space import PageSpace

MAX_STAGED = 64


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
        passes: dict[int, Pass] | None = None,
    ) -> None:
        """`prefixes` None: all is computed, whatever pages there are.  `pool_pages`: pages of the device group, 0 for
        unknown: then nothing is dropped that would have to be computed again.  `priority`: of the host's own
        commands.  `passes`: the inferlet's by ticket, those on other models included."""
        self._inferlet = inferlet
        self._device = device
        self._pages = pages
        self._tickets = tickets
        self._lineage = lineage
        self._prefixes = prefixes
        self._work = work = Work()
        self._staged, self._in_flight, self._runs = work.staged, work.in_flight, work.runs
        self._is_closed = False
        self.swap = Swap(inferlet, pages, lineage, pool_pages, prefixes)
        self._host_queue = Queue(0, priority)  # of commands of the host's own
        self.own = OwnMessages(tickets.number, self._post)
        self.passes = {} if passes is None else passes
        self.transfers = transfers
        self.results = Results(inferlet, tickets, transfers)
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
        self.leases = Leases(
            inferlet,
            device,
            pages,
            work,
            self.swap,
            self.ledger,
            self.preemption,
            prefixes,
            lease_pages=lease_pages,
            page_wait_s=page_wait_s,
            pump=self._pump,
            fail_first=self._fail_first,
        )

    @property
    def num_computed(self) -> int:
        """Tokens that were computed."""
        return self._work.num_computed

    def usage(self) -> dict[str, int]:
        """Tokens computed, tokens that were there already, and pages that were given up for others, so far."""
        return {
            "tokens_computed": self.num_computed,
            "tokens_found": self.leases.num_found,
            "pages_swapped": self.swap.num_out,
        }

    @property
    def num_outstanding(self) -> int:
        return self._work.num_outstanding

    def check_room(self) -> None:
        """Raise QuotaExceeded over `Limits.tickets` commands: one whose ticket was cancelled still counts here."""
        if self.num_outstanding >= self._tickets.limit:
            raise QuotaExceeded(
                f"tickets: the limit is {self._tickets.limit}, as many commands are outstanding; one more was enqueued"
            )

    def stage(self, command: Command) -> None:
        """Enqueue; past MAX_STAGED what came before is sent."""
        self._staged.append(command)
        self.leases.enqueued()
        command.queue.outstanding[command.ticket] = None
        if isinstance(command, Pass):
            self.passes[command.ticket] = command
        if len(self._staged) > MAX_STAGED:
            self.flush(keep=1)

    def flush(self, keep: int = 0) -> None:
        """The guest waits or flushes: all that is staged, but the last `keep`, may go."""
        if self._staged:
            self._work.num_flushed = len(self._staged) - keep
            self._pump()
        else:
            self._post(self.swap.ahead())
            self.leases.give_back()
            self.leases.ask_for_pages()

    def writers_of(self, rows: Collection[int]) -> set[int]:
        """Tickets of the unfinished commands that write to those frames."""
        return {c.ticket for c in self._work.unfinished() if any(row in rows for row, _ in c.prepared.writes)}

    # --- pages given up, see pieray.host.device.preemption --------------------------------------------------

    def preempt(self, kept: Collection[int], shared: Collection[int] = ()) -> None:
        """See `Preemption.preempt`."""
        if not self._is_closed:
            self.preemption.preempt(kept, shared)

    def _resume(self, is_for_others: bool) -> None:
        """Pages have been given up."""
        if is_for_others:
            self.leases.taken()
        self._pump()

    def _given_up(self) -> None:
        """What was to be computed on top of what is lost by now is planned anew."""
        outdated = [c for c in self._staged if isinstance(c, Rebuild) and self._pages.is_lost(c.given)]
        for rebuild in outdated:
            self._staged.remove(rebuild)
            self._work.num_flushed -= 1
            self.swap.take_back(rebuild)

    def _uses_lost(self, command: Command) -> bool:
        """Whether another command is to compute what this one uses before it."""
        return self.swap.has_lost and not isinstance(command, Rebuild) and self._pages.is_lost(command.prepared.rows)

    def _rebuild_first(self, rows: I64) -> None:
        """The next command uses frames that are lost: the next is the one that computes them again."""
        if (rebuild := self.swap.rebuild(self._tickets.number(), self._host_queue, rows)) is not None:
            self._work.num_flushed += 1
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
        self._work.num_flushed = len(self._staged)
        self._pump()
        return command.ticket

    def prefetch(self) -> None:
        """The program is about to go on: what was given up for others is brought back."""
        if self._pages.num_swapped and not self.preemption.is_going and not self._staged:
            self.restore(self._pages.away_rows())

    # --- sending -----------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what is flushed as far as memory is bound; ask for what is short.

        What is not flushed stays, also when a lease comes: its outputs may not all have been asked for yet.
        """
        messages: list[Message] = []
        self._work.num_lacking, self._work.lacking = 0, None
        is_making_way = self.leases.is_making_way()
        while self._work.num_flushed and not self.preemption.is_going and not is_making_way:
            command = self._staged[0]
            if self.leases.sought(command):
                break
            if self._uses_lost(command):
                self._rebuild_first(command.prepared.rows)
                continue
            if self.leases.is_to_be_found(command) or not self._bind(command, messages):
                break
            messages += self.swap.ahead()
            self._staged.popleft()
            self._work.num_flushed -= 1
            if command.prepared.error is not None:  # what it reads was to be written by a command that has failed
                self._settle(command, command.prepared.error)
                continue
            if isinstance(command, Run) and command.is_stopped:
                if command.prepared.copies:
                    messages.append(command.copy_on_write(self._inferlet))
                    command.trace(self._lineage)
                self._settle(command, ["", ""])
                continue
            command.is_sent = True
            command.trace(self._lineage)
            self._in_flight[command.ticket] = command
            if isinstance(command, Run):
                self._runs[command.ticket] = command
            if command.prepared.copies and command.writes_behind_copies:
                messages.append(command.copy_on_write(self._inferlet))
            messages += command.messages(self._inferlet)
        if not self.preemption.is_going:
            messages += self._grow_runs()
        messages += self.swap.ahead()
        self._post(messages)
        self.leases.give_back()
        self.leases.ask_for_pages()

    def closing(self, handles: U32) -> None:
        """Page handles are about to be closed: what is lost with them is to be found by others."""
        if self._prefixes is not None:
            self._prefixes.closing(handles, self._work.unfinished())

    def _bind(self, command: Command, messages: list[Message]) -> bool:
        """Bind memory; first to the runs before it, up to the last page that both use: it waits for these."""
        for run in self._runs.values():
            growing = run.prepared
            if isinstance(growing, Growing) and (count := self._pages.runs.num_before(growing, command.prepared)):
                self._work.num_lacking = count - self._extend(run, growing, count, messages)
                if self._work.num_lacking:
                    self._work.lacking = run
                    return False
        return self._pages.stager.bind(command.prepared)

    def _extend(self, run: Run, growing: Growing, count: int, messages: list[Message]) -> int:
        pages = self._pages.runs.grow(growing, count)
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
            self._pages.runs.stop(run.prepared)
        if run.ticket in self._runs:
            self._post([StopPlan(wire_ticket(self._inferlet, run.ticket))])

    def _post(self, messages: list[Message]) -> None:
        try:
            if messages:
                self._device.post(messages)
        except DeviceLost as error:
            self.fail_all(error)

    def drew(self, ticket: int, tokens: bytes, logprobs: bytes, counts: bytes) -> None:
        """What a run has drawn: tokens (u32), their log-probabilities (f32, or b""), and its counts (u32[3])."""
        run = self._runs.get(ticket)
        if run is None:
            return
        wants_pages = run.drew(tokens, logprobs, counts)
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
            if not isinstance(prepared, Growing) and not self._prefixes.is_due(len(prepared.writes)):
                return
            rows = prepared.all_rows if isinstance(prepared, Growing) else prepared.rows[: prepared.num_pages]
            self._pages.runs.settle()
            self._prefixes.enter(rows, self._work.unfinished(command))

    def answered(self, ticket: int, result: object) -> None:
        """The batcher's answer to a command or an output."""
        command = self._in_flight.pop(ticket, None)
        if command is not None:
            if isinstance(command, Run) and command.is_to_go_on(result):
                self._go_on(command)
            else:
                self._settle(command, result)
            self.preemption.go_on()
            if self._work.num_lacking or self.leases.is_waiting_for_own:  # for pages of others of its own
                self._pump()
        elif not (self.own.answered(ticket, result) or self.preemption.answered(ticket, result) or ticket == INTERNAL):
            self.transfers.ended(ticket)
            self._tickets.resolve(ticket, result)

    def _go_on(self, run: Run) -> None:
        """A run was stopped for others: it is to be sent again, ahead of all that came behind it."""
        del self._runs[run.ticket]
        self.leases.stopped(run)
        self._work.num_settled += run.num_computed
        run.go_on()
        before = sum(isinstance(c, Run) and not c.is_sent and c.ticket < run.ticket for c in self._staged)
        self._staged.insert(before, run)
        self._work.num_flushed += 1

    def _settle(self, command: Command, result: object) -> None:
        self._runs.pop(command.ticket, None)
        self.leases.ended(command)
        value = command.settled(result)
        if command.is_sent and not isinstance(result, PierayError):
            self._work.num_settled += command.num_computed
            if self.swap.has_names:
                self.swap.came_back(command.prepared.rows)
            if isinstance(command, Run) or command.num_computed >= self._pages.page_size:
                self._enter(command)
        self._pages.stager.finish(command.prepared, is_ok=not isinstance(result, PierayError))
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

    def _fail_first(self, error: PierayError) -> None:
        """No memory comes for the first of what is flushed: it fails, unless it can be bound after all."""
        messages: list[Message] = []
        if not self._bind(self._staged[0], messages):
            self._work.num_flushed -= 1
            self._settle(self._staged.popleft(), error)
        self._post(messages)

    def close(self) -> None:
        """The guest has ended: drop what is not sent; its pages come back when the lease is closed.

        From here on nothing is asked of the device: a lease that came after CloseLease would never end.
        """
        self.leases.close()
        self._is_closed = True
        self.preemption.stop()
        if self._prefixes is not None:
            self._prefixes.enter_all(self._work.unfinished())
        self.passes.clear()
        self.own.end(None)
        self._runs.clear()
        self._staged.clear()
        self._work.num_flushed = 0
        self.ledger.close()
        self.transfers.close()

    def fail_all(self, error: PierayError) -> None:
        """The device is lost: fail everything staged and in flight; what was asked of it is never answered."""
        commands = self._work.unfinished()
        self._in_flight.clear()
        self._staged.clear()
        self._work.num_flushed = self._work.num_lacking = 0
        self._work.lacking = None
        self.leases.fail_all()
        self.preemption.stop()
        for command in commands:
            self._settle(command, error)
        self.own.end(error)
        self.ledger.fail_all(error)
