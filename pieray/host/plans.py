"""Decode plans of one inferlet: what the guest asked for, what the batcher has told."""

from __future__ import annotations

import json
from array import array
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pieray.errors import InvalidRequest, PierayError
from pieray.host.commands import Queue, Run, wire_ticket
from pieray.host.state import InstanceState
from pieray.host.tickets import Kind
from pieray.messages import RunTokens, Sampler, StartPlan
from pieray.pages.growing import Growing

U32 = npt.NDArray[np.uint32]

READY, RUNNING, PAUSED, ENDED = "ready", "running", "paused", "ended"
AHEAD_TOKENS = 64
"""Tokens for which a run has pages ahead of what it has drawn, at most; half of it at least, while there are any."""


@dataclass(slots=True)
class Settings:
    """What may be changed before `start` and while the plan is paused."""

    sampler: Sampler
    stop_tokens: bytes = b""  # u32
    stop_texts: tuple[str, ...] = ()
    grammar: tuple[Any, ...] = ()  # kind, text, tokens taken in before the plan
    num_taken: int = 0  # tokens drawn before the grammar was set: it begins behind them
    adapter: int = 0
    num_drafts: int = 0
    history: bytes = b""  # u32
    is_scored: bool = False


class Plan:
    """One plan.  All methods are called with the instance's lock held."""

    def __init__(self, state: InstanceState, queue: Queue, pages: U32, kv_len: int, tokens: U32, max_tokens: int,
                 sampler: Sampler) -> None:  # fmt: skip
        self._instance = state
        self.queue = queue
        self._pages = pages
        self._kv_len = kv_len
        self._max_tokens = max_tokens
        self._num_prompt = len(tokens)
        self._line = array("I", tokens.tolist())  # and what was drawn
        self._scores = array("f")
        self._num_given = 0  # drawn tokens that `next` has handed out
        self._num_valid = 0  # tokens of the line whose KV is written
        self.settings = Settings(sampler)
        self.state = READY
        self._run: PlanRun | None = None
        self._error: PierayError | None = None
        self._is_cancelled = False
        self._finish_reason = ""
        self._stopped_by: int | str = ""
        self._counts = [0, 0, 0]
        self._nexts: deque[tuple[int, bool]] = deque()  # tickets, and whether with log-probabilities
        self._stops: list[int] = []  # tickets of pause and cancel

    @property
    def num_drawn(self) -> int:
        return len(self._line) - self._num_prompt

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
        instance = self._instance
        num_more = self._max_tokens - self.num_drawn
        if num_more == 0:
            self.state, self._finish_reason = ENDED, "length"
            return
        done = min(self._num_valid, len(self._line) - 1)
        tokens = self._line[done:]
        instance.outbox.check_room()
        ticket = instance.tickets.issue(Kind.NONE)
        instance.tickets.drop((ticket,))  # a number of the host's own: no guest may take or cancel it
        kv_len = self._kv_len + done
        visible = instance.pages.visible(self._pages, kv_len)
        prepared = instance.pages.stage_plan(self._pages, kv_len, len(tokens), num_more - 1)
        instance.lineage.record_copy(prepared)
        self._run = run = PlanRun(ticket, self, prepared, done, tokens.tobytes(), num_more)
        run.visible = b"" if visible is None else np.packbits(visible, bitorder="little").tobytes()
        self.state = RUNNING
        instance.outbox.stage(run)

    def message(self, run: PlanRun) -> StartPlan:
        """A run as it travels."""
        instance, settings, queue = self._instance, self.settings, self.queue
        drawn = self._line[self._num_prompt :]
        grammar: list[Any] = []
        if settings.grammar:
            kind, text, consumed = settings.grammar
            grammar = [kind, text, consumed + drawn[settings.num_taken :].tobytes(), instance.launch.tenant]
        history = b""
        if settings.num_drafts:
            history = settings.history + self._line[: run.done].tobytes()
        return StartPlan(
            wire_ticket(instance.number, run.ticket), instance.number, queue.handle, queue.priority,
            run.growing.pages.tobytes(), self._kv_len + run.done, run.tokens, run.max_tokens,
            settings.sampler, settings.stop_tokens, list(settings.stop_texts), grammar, settings.adapter,
            settings.num_drafts, history, drawn.tobytes() if settings.stop_texts else b"", settings.is_scored,
            run.visible,
        )  # fmt: skip

    def told(self, run: PlanRun, news: RunTokens) -> None:
        """The run has drawn more."""
        if self._is_cancelled:
            return  # the guest may have written to these slots since
        instance, start = self._instance, run.num_valid
        self._line.frombytes(news.tokens)
        self._scores.frombytes(news.logprobs)
        self._num_valid = run.num_valid = len(self._line) - 1
        self._counts = [before + now for before, now in zip(run.counts, news.counts, strict=True)]
        first = self._kv_len + start
        written = instance.pages.confirm(run.growing, first, self._kv_len + run.num_valid)
        if written is None or run.visible or self.settings.adapter:
            instance.lineage.give_up()  # its log has no room for these
        else:
            tokens = np.array(self._line[start : run.num_valid], np.uint32)
            instance.lineage.record_forward(written, first, tokens, np.zeros(0, np.uint32), b"")
        self._give()

    def ended(self, run: PlanRun, result: object) -> None:
        """The run is over; `result` as the batcher's Completed has it, or an error."""
        self._run = None
        if isinstance(result, list) and not self._is_cancelled:
            self._finish_reason, self._stopped_by = result
        self._error = None if self._is_cancelled or self._finish_reason else run.failure(result)
        is_paused = not (self._is_cancelled or self._finish_reason or self._error)
        self.state = PAUSED if is_paused else ENDED
        for ticket in self._stops:
            self._instance.tickets.resolve(ticket, None)
        self._stops.clear()
        self._give()

    # --- what was drawn --------------------------------------------------------------------------

    def next(self, ticket: int, *, is_scored: bool) -> None:
        """Resolve the ticket with what was drawn since the last one, now or when there is more."""
        self._nexts.append((ticket, is_scored))
        if len(self._nexts) > 2 * (tickets := self._instance.tickets).limit:  # most of them were cancelled
            self._nexts = deque(one for one in self._nexts if tickets.is_open(one[0]))
        self._give()

    def _give(self) -> None:
        tickets = self._instance.tickets
        while self._nexts and (self._num_given < self.num_drawn or self._run is None):
            ticket, is_scored = self._nexts.popleft()
            is_last = self._num_given == self.num_drawn
            result = self._error if is_last and self._error is not None else self._fresh(is_scored)
            if tickets.resolve(ticket, result):
                self._num_given = self.num_drawn

    def _fresh(self, is_scored: bool) -> object:
        """The drawn tokens that nobody has got yet, as a ticket holds them."""
        tokens = self._line[self._num_prompt + self._num_given :].tobytes()
        return [tokens, self._scores[self._num_given :].tobytes()] if is_scored else tokens

    # --- stopping --------------------------------------------------------------------------------

    def pause(self) -> int:
        """A ticket that resolves when no more is drawn."""
        if self.state == READY:
            raise InvalidRequest("pause: the plan is not started")
        return self._stop()

    def cancel(self) -> int:
        """End the plan; a ticket that resolves when no step touches its pages."""
        ticket = self._instance.tickets.issue(Kind.NONE)
        self.end()
        self._stop(ticket)
        return ticket

    def end(self) -> None:
        """The same without a ticket; nothing more is taken from the batcher."""
        if self.state != ENDED:
            self._is_cancelled, self._finish_reason = True, "cancelled"
            self.state = ENDED
            self._stop_run()

    def _stop(self, ticket: int = 0) -> int:
        tickets = self._instance.tickets
        ticket = ticket or tickets.issue(Kind.NONE)
        if self._run is None:
            tickets.resolve(ticket, None)
            return ticket
        self._stops.append(ticket)
        if len(self._stops) > 2 * tickets.limit:  # most of them were cancelled
            self._stops = [one for one in self._stops if tickets.is_open(one)]
        self._stop_run()
        return ticket

    def _stop_run(self) -> None:
        if self._run is not None and not self._run.is_stopped:
            self._run.is_stopped = True
            self._instance.outbox.stop(self._run)

    def truncate(self, num_tokens: int) -> None:
        """Forget what was drawn behind the first `num_tokens` tokens."""
        if self._run is not None or self.state == READY:
            raise InvalidRequest(f"truncate: a plan is cut while it is paused or ended; this one is {self.state}")
        if num_tokens > self.num_drawn:
            raise InvalidRequest(f"truncate keeps from 0 to {self.num_drawn} tokens; given {num_tokens}")
        del self._line[self._num_prompt + num_tokens :]
        del self._scores[num_tokens:]
        self._num_given = min(self._num_given, num_tokens)
        self._num_valid = min(self._num_valid, len(self._line))
        self.settings.num_taken = min(self.settings.num_taken, num_tokens)
        self.state, self._error, self._is_cancelled = PAUSED, None, False
        self._finish_reason, self._stopped_by = "", ""

    def describe(self) -> str:
        """The JSON of `plans.state`."""
        return json.dumps({
            "state": self.state, "num_tokens": self.num_drawn, "kv_len": self._kv_len + self._num_valid,
            "finish_reason": self._finish_reason, "stopped_by": self._stopped_by, "num_steps": self._counts[0],
            "num_drafted": self._counts[1], "num_accepted": self._counts[2],
        })  # fmt: skip


class PlanRun(Run):
    """A plan's way from `start` or `resume` until it ends or is paused: one command to the batcher."""

    __slots__ = ("counts", "done", "error", "growing", "is_stopped", "max_tokens", "num_valid", "plan", "tokens",
                 "visible")  # fmt: skip

    def __init__(self, ticket: int, plan: Plan, growing: Growing, done: int, tokens: bytes, max_tokens: int) -> None:
        super().__init__(ticket, plan.queue, growing)
        self.plan = plan
        self.growing = growing
        self.done = done  # tokens of the plan's line before those of the run
        self.num_valid = done  # tokens of the line whose KV is written
        self.tokens = tokens
        self.visible = b""  # packed bits [kv_len]; b"": all
        self.max_tokens = max_tokens
        self.counts = list(plan._counts)  # of the runs before
        self.error: PierayError | None = None
        self.is_stopped = False

    def message(self, inferlet: int) -> StartPlan:  # noqa: ARG002 - the plan knows it
        return self.plan.message(self)

    def told(self, news: RunTokens) -> None:
        self.plan.told(self, news)

    def settled(self, result: object) -> None:
        """The plan hears of it; the run's own ticket is nobody's."""
        self.plan.ended(self, result)

    def failure(self, result: object) -> PierayError | None:
        """Why it did not end well; None for a run that was stopped, also before it began."""
        if self.error is None and isinstance(result, PierayError) and (self.is_sent or not self.is_stopped):
            return result
        return self.error

    def _num_needed(self) -> int:
        """Pages without which the batcher cannot run the last token that it has told of."""
        plan = self.plan
        return min(-(-(plan._kv_len + len(plan._line)) // plan._instance.pages.page_size), len(self.growing.line))

    def num_wanted(self) -> int:
        if self.is_stopped:
            return 0
        ahead = max(2, AHEAD_TOKENS // self.plan._instance.pages.page_size)
        growing, needed = self.growing, self._num_needed()
        if growing.room - needed >= (ahead + 1) // 2:
            return 0
        return min(needed + ahead, len(growing.line)) - growing.room

    def is_starving(self) -> bool:
        return not self.is_stopped and self.growing.room < self._num_needed()

    def give_up(self, error: PierayError) -> None:
        self.error = error
        self.is_stopped = True
        self.plan._instance.outbox.stop(self)
