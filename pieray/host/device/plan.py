"""A decode plan of an inferlet: what the guest has asked for, what the batcher has drawn."""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from typing import Any

import numpy as np

from pieray.arrays import U32
from pieray.errors import InvalidRequest, PierayError
from pieray.host.device.commands import Queue, Run, Text, wire_ticket
from pieray.host.device.drawn import Drawn
from pieray.host.device.plan_settings import PlanContext, PlanSettings
from pieray.host.tickets import Kind, Ticket
from pieray.messages import Sampler, StartPlan
from pieray.pages.growing import Growing

READY, RUNNING, PAUSED, ENDED = "ready", "running", "paused", "ended"
AHEAD_TOKENS = 64
"""Tokens for which a run has pages ahead of what it has drawn, at most; half of it at least, while there are any."""
NEVER = 1 << 62


class StopTicket(Ticket):
    """Of pause and cancel: resolves when no more is drawn."""

    __slots__ = ("plan",)

    def __init__(self, plan: Plan) -> None:
        super().__init__(Kind.NONE)
        self.plan = plan

    def left(self, *, is_taken: bool) -> None:  # noqa: ARG002 - as Ticket.left
        self.plan.stops.pop(self, None)


class Plan:
    """One plan.  All methods are called with the instance's lock held."""

    def __init__(
        self,
        context: PlanContext,
        queue: Queue,
        pages: U32,
        kv_len: int,
        tokens: U32,
        max_tokens: int,
        sampler: Sampler,
    ) -> None:
        self._context = context
        self.queue = queue
        self._pages = pages
        self.kv_len = kv_len
        self._max_tokens = max_tokens
        self.drawn = Drawn(tokens.tolist(), context.tickets, context.send, self._stop_at, self._fail)
        self._num_valid = 0  # tokens of the line whose KV is written
        self.settings = PlanSettings(sampler)
        self.state = READY
        self._run: PlanRun | None = None
        self._ignores_run = False  # what the run draws further is nothing to the plan
        self._finish_reason = ""
        self._stopped_by: int | str = ""
        self._counts = [0, 0, 0]  # of the runs that are over
        self.stops: OrderedDict[StopTicket, None] = OrderedDict()

    @property
    def tokens(self) -> array[int]:
        """The tokens that it began with, and those drawn."""
        return self.drawn.tokens

    def check_editable(self) -> None:
        """Raise InvalidRequest unless the plan may be changed."""
        if self.state not in (READY, PAUSED):
            raise InvalidRequest(f"a plan is changed before start or while it is paused; this one is {self.state}")

    # --- running ---------------------------------------------------------------------------------

    def start(self) -> None:
        if self.state != READY:
            raise InvalidRequest(f"a plan is started once, and then resumed; this one is {self.state}")
        self._go()

    def resume(self) -> None:
        if self.state != PAUSED:
            raise InvalidRequest(f"resume: the plan is {self.state}, not paused")
        self._go()

    def _go(self) -> None:
        """Begin a run of what has no KV yet: the last token at least."""
        context = self._context
        num_more = self._max_tokens - self.drawn.count
        if num_more == 0:
            self.state, self._finish_reason = ENDED, "length"
            return
        done = min(self._num_valid, len(self.tokens) - 1)
        context.outbox.check_room()
        kv_len = self.kv_len + done
        visible = context.pages.visible(self._pages, kv_len)
        if visible is not None and self.settings.looks_at_pages:
            raise InvalidRequest("programs that look at pages run in plans without hidden slots; this one has some")
        growing = context.pages.plans.stage(self._pages, kv_len, len(self.tokens) - done, num_more - 1)
        bits = b"" if visible is None else np.packbits(visible, bitorder="little").tobytes()
        self._run = run = PlanRun(context.tickets.number(), self, growing, done, num_more, bits)
        growing.on_settled = run.settled_slots
        self.state = RUNNING
        self.drawn.is_running = True
        self.drawn.stop_tokens = frozenset(np.frombuffer(self.settings.stop_tokens, "<u4").tolist())
        context.outbox.stage(run)

    def message(self, run: PlanRun) -> StartPlan:
        """A run as it travels."""
        context, settings, queue = self._context, self.settings, self.queue
        drawn = self.tokens[self.drawn.num_prompt :]
        grammar: list[Any] = []
        if settings.grammar:
            kind, text, consumed = settings.grammar
            grammar = [kind, text, consumed + drawn[settings.num_taken :].tobytes(), context.identity.tenant]
        history = b""
        if settings.num_drafts:
            history = settings.history + self.tokens[: run.done].tobytes()
        return StartPlan(
            wire_ticket(context.identity.number, run.ticket),
            context.identity.number,
            queue.handle,
            queue.priority,
            run.growing.pages.tobytes(),
            self.kv_len + run.done,
            self.tokens[run.done :].tobytes(),
            run.max_tokens,
            settings.sampler,
            settings.stop_tokens,
            list(settings.stop_texts),
            grammar,
            settings.adapter,
            settings.num_drafts,
            history,
            drawn.tobytes() if settings.stop_texts else b"",
            settings.is_scored,
            run.visible,
            list(settings.programs),
        )

    def drew(self, tokens: bytes, logprobs: bytes) -> None:
        """A run has drawn more: all that a token costs."""
        if self._ignores_run:
            return  # the guest may have written to these slots since
        assert self._run is not None
        self._num_valid = len(self.tokens) + len(tokens) // 4 - 1
        self._run.growing.num_written = self.kv_len + self._num_valid
        self.drawn.add(tokens, logprobs)

    def ended(self, run: PlanRun, result: object) -> None:
        """The run is over; `result` is [finish reason, stopped by], or an error."""
        self._run = None
        self._counts = self._counts_with(run)
        error = self.drawn.error
        if not self._ignores_run:
            if isinstance(result, list):
                self._finish_reason, self._stopped_by = result
            error = None if self._finish_reason else run.failure(result)
        self.state = ENDED if self._ignores_run or self._finish_reason or error is not None else PAUSED
        for ticket in list(self.stops):
            self._context.tickets.resolve(ticket.number, None)
        self.stops.clear()
        self.drawn.end(error)

    def _stop_at(self, num_tokens: int, text: str) -> None:
        """A text stream has met its stop text: what was drawn behind these tokens is forgotten."""
        self._context.pages.runs.settle()
        self.drawn.cut(num_tokens)
        self._num_valid = min(self._num_valid, len(self.tokens))
        self._end("stop")
        self._stopped_by = text

    def _fail(self, error: PierayError) -> None:
        """Who takes what is drawn cannot go on: the plan has ended with the error."""
        self._end("")
        self.drawn.error = error

    def _end(self, reason: str) -> None:
        """Nothing more is taken from the batcher."""
        self._ignores_run, self._finish_reason, self.state = True, reason, ENDED
        self._stop_run()

    # --- stopping --------------------------------------------------------------------------------

    def pause(self) -> int:
        """A ticket that resolves when no more is drawn."""
        if self.state == READY:
            raise InvalidRequest("pause: the plan is not started")
        return self._stop(StopTicket(self))

    def cancel(self) -> int:
        """End the plan; a ticket that resolves when no step touches its pages."""
        ticket = StopTicket(self)
        self._context.tickets.add(ticket)
        self.end()
        return self._stop(ticket)

    def end(self) -> None:
        """The same without a ticket; nothing more is taken from the batcher."""
        if self.state != ENDED:
            self._end("cancelled")

    def _stop(self, ticket: StopTicket) -> int:
        tickets = self._context.tickets
        number = ticket.number or tickets.add(ticket)
        if self._run is None:
            tickets.resolve(number, None)
        else:
            self.stops[ticket] = None
            self._stop_run()
        return number

    def _stop_run(self) -> None:
        if self._run is not None and not self._run.is_stopped:
            self._run.is_stopped, self._run.is_preempted = True, False
            self._context.outbox.stop(self._run)

    def truncate(self, num_tokens: int) -> None:
        """Forget what was drawn behind the first `num_tokens` tokens."""
        if self._run is not None or self.state == READY:
            raise InvalidRequest(f"truncate: a plan is cut while it is paused or ended; this one is {self.state}")
        if num_tokens > self.drawn.count:
            raise InvalidRequest(f"truncate keeps from 0 to {self.drawn.count} tokens; given {num_tokens}")
        self.drawn.cut(num_tokens)
        self._num_valid = min(self._num_valid, len(self.tokens))
        self.settings.num_taken = min(self.settings.num_taken, num_tokens)
        self.state, self.drawn.error, self._ignores_run = PAUSED, None, False
        self._finish_reason, self._stopped_by = "", ""

    def describe(self) -> str:
        """The JSON of `plans.state`."""
        counts = self._counts if self._run is None else self._counts_with(self._run)
        return json.dumps(
            {
                "state": self.state,
                "num_tokens": self.drawn.count,
                "kv_len": self.kv_len + self._num_valid,
                "finish_reason": self._finish_reason,
                "stopped_by": self._stopped_by,
                "num_steps": counts[0],
                "num_drafted": counts[1],
                "num_accepted": counts[2],
            }
        )

    def _counts_with(self, run: PlanRun) -> list[int]:
        """Steps, drafts and accepted drafts of all runs, this one's included."""
        told = np.frombuffer(run.counts, "<u4").tolist()
        return [before + now for before, now in zip(self._counts, told, strict=True)]


class PlanRun(Run):
    """A plan's way from `start` or `resume` until it ends or is paused: one command to the batcher."""

    __slots__ = (
        "counts",
        "done",
        "error",
        "grow_at",
        "growing",
        "is_preempted",
        "is_stopped",
        "max_tokens",
        "plan",
        "visible",
    )

    def __init__(self, ticket: int, plan: Plan, growing: Growing, done: int, max_tokens: int, visible: bytes) -> None:
        super().__init__(ticket, plan.queue, growing)
        self.plan = plan
        self.growing = growing
        self.done = done  # tokens of the plan's line before those that it runs
        self.visible = visible  # packed bits [kv_len]; b"": all
        self.max_tokens = max_tokens
        self.counts = bytes(12)  # u32[3]: steps, drafts, accepted drafts
        self.error: PierayError | None = None
        self.is_stopped = False
        self.is_preempted = False  # it is stopped for others, and goes on later
        self.grow_at = 0  # slots written, from which on it should have more pages
        self.is_entered = len(plan.tokens) - done < self._page_size  # then it leaves no page of note

    def text(self) -> Text | None:
        plan = self.plan
        if self.visible:
            return None
        return Text(plan.kv_len + self.done, plan.tokens[self.done :].tobytes(), b"", plan.settings.content)

    @property
    def num_skippable(self) -> int:  # type: ignore[override]
        return len(self.plan.tokens) - self.done - 1

    def skip(self, num_tokens: int) -> None:
        self.done += num_tokens
        self.growing.num_written += num_tokens

    @property
    def num_computed(self) -> int:  # type: ignore[override]
        return self.growing.num_written - self.plan.kv_len - self.done

    def message(self, inferlet: int) -> StartPlan:  # noqa: ARG002 - the plan knows it
        return self.plan.message(self)

    def drew(self, tokens: bytes, logprobs: bytes, counts: bytes) -> bool:
        self.counts = counts
        self.plan.drew(tokens, logprobs)
        return self.growing.num_written >= self.grow_at

    def settled(self, result: object) -> None:
        """The plan hears of it; the run's own ticket is nobody's."""
        self.plan.ended(self, result)

    def preempt(self) -> bool:
        if self.is_stopped or self.is_preempted:
            return False
        self.is_preempted = True
        return True

    def is_to_go_on(self, result: object) -> bool:
        return self.is_preempted and isinstance(result, list) and not result[0]

    def go_on(self) -> None:
        plan = self.plan
        plan._counts, self.counts = plan._counts_with(self), bytes(12)
        done = min(plan._num_valid, len(plan.tokens) - 1)
        self.growing = self.prepared = plan._context.pages.plans.restage(self.growing, len(plan.tokens) - done)
        if self.visible:
            self.visible = _with_ones(self.visible, plan.kv_len + self.done, done - self.done)
        self.done = done
        self.max_tokens = plan._max_tokens - plan.drawn.count
        self.hashes = []
        self.is_sought = False
        self.is_sent = self.is_preempted = False
        self.grow_at = 0

    def settled_slots(self, start: int, stop: int, is_untouched: bool) -> None:
        """See `Growing.on_settled`: the span goes to the log."""
        plan, context = self.plan, self.plan._context
        if not is_untouched:
            context.lineage.give_up()
            return
        frames = self.growing.idents[: -(-stop // context.pages.page_size)]
        tokens = plan.tokens[start - plan.kv_len : stop - plan.kv_len].tobytes()
        context.lineage.add_forward(frames, start, tokens, visible=self.visible, adapter=plan.settings.content)

    def failure(self, result: object) -> PierayError | None:
        """Why it did not end well; None for a run that was stopped, also before it began."""
        if self.error is None and isinstance(result, PierayError) and (self.is_sent or not self.is_stopped):
            return result
        return self.error

    @property
    def _page_size(self) -> int:
        return self.plan._context.pages.page_size

    def _num_needed(self) -> int:
        """Pages without which the batcher cannot run the last token that it has told of."""
        return min(-(-(self.plan.kv_len + len(self.plan.tokens)) // self._page_size), len(self.growing.all_rows))

    def num_wanted(self) -> int:
        if self.is_stopped:
            return 0
        growing, needed, ahead = self.growing, self._num_needed(), self._num_ahead
        if growing.room - needed >= (ahead + 1) // 2:
            return 0
        return min(needed + ahead, len(growing.all_rows)) - growing.room

    def num_lacking(self) -> int:
        growing, needed = self.growing, self._num_needed()
        if self.is_stopped or growing.room > needed:
            return 0
        return min(needed + (self._num_ahead + 1) // 2, len(growing.all_rows)) - growing.room

    @property
    def _num_ahead(self) -> int:
        return max(2, AHEAD_TOKENS // self._page_size)

    def is_starving(self) -> bool:
        return not self.is_stopped and self.growing.room < self._num_needed()

    def grown(self) -> None:
        """From where `num_wanted` is more than 0 again; where it did not get all, from the next page on."""
        growing, size = self.growing, self._page_size
        if growing.room == len(growing.all_rows):
            self.grow_at = NEVER
            return
        at = (growing.room - (self._num_ahead + 1) // 2) * size
        self.grow_at = at if at > growing.num_written else (growing.num_written // size + 1) * size

    def give_up(self, error: PierayError) -> None:
        self.error = error
        self.is_stopped = True
        self.plan._context.outbox.stop(self)


def _with_ones(bits: bytes, count: int, num_more: int) -> bytes:
    """Packed bits [count], with so many ones behind them."""
    found = np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little")
    return np.packbits(np.concatenate((found, np.ones(num_more, np.uint8))), bitorder="little").tobytes()
