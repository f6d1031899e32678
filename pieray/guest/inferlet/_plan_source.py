"""A generation's tokens from decode plans."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from . import _host
from ._draws import Drawn, Draws, NoPlan
from ._texts import Texts
from ._waiting import wait_ticket
from .errors import Error, InvalidRequest, QuotaExceeded, Unsupported
from .plans import Plan
from .tensor import in_pass

if TYPE_CHECKING:
    from .context import Context

PLAN_TOKENS = 256
"""Tokens of one plan: it needs page handles for all of them.  A longer generation is several plans."""
NUM_DRAFTS = 8
"""Tokens that a plan drafts a step at most."""


class OpenPlans:
    """The sources that have a plan open, and those that wait because the inferlet's limit of plans is reached.

    A plan that nobody waits for (its generation's consumer is busy elsewhere, perhaps with a generation that waits
    here) is given up for one that is asked for: what it drew ahead is drawn again, from a plan of its own, later.  So
    generations that wait for each other do not wait for ever.
    """

    def __init__(self) -> None:
        self._sources: dict[PlanSource, None] = {}  # the one opened first is first
        self._waiting: deque[asyncio.Future[None]] = deque()

    def add(self, source: PlanSource) -> None:
        self._sources[source] = None

    def remove(self, source: PlanSource) -> None:
        """Its plan is closed: the next that waits may open one."""
        self._sources.pop(source, None)
        self._wake()

    async def wait(self) -> None:
        """Return when a plan may have come free, in turn.  Raises NoPlan if none is open that could: the limit is 0, or
        the inferlet itself has all of them."""
        if not self._sources:
            raise NoPlan
        if self._release_idle():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def rest(self) -> None:
        """Nobody waits for some source now.  If that stays so until others run, its plan goes to who waits for one."""
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._release_idle)

    def _release_idle(self) -> bool:
        idle = next((source for source in self._sources if not source.is_busy), None)
        if idle is None:
            return False
        idle.release()
        return True

    def clear(self) -> None:
        """Forget all of them."""
        self._sources.clear()
        self._waiting.clear()


_open_plans = OpenPlans()
_host.at_install(_open_plans.clear)


class PlanSource:
    """A decode plan.  It runs ahead; when the context changes it is cancelled, and another begins where that stands."""

    def __init__(self, context: Context, draws: Draws, texts: Texts) -> None:
        self._context = context
        self._draws = draws
        self._texts = texts
        self._knows_stops = True  # the plan ends where the generation does
        self._flow = 0  # ticket of the text that goes to the client
        self._kept = Drawn([])  # what it was of, taken in when the context was about to change
        self._plan: Plan | None = None
        self.is_busy = False
        self.is_stale = False
        self.finish_reason = ""
        self.way = ""

    async def next(self, num_left: int, most: int = 0) -> Drawn:
        return await self._drawn(num_left, lambda plan: self._read(plan, most))

    async def stream(self, num_left: int) -> Drawn:
        return await self._drawn(num_left, self._stream)

    async def _drawn(self, num_left: int, draw: Callable[[Plan], Coroutine[Any, Any, Drawn]]) -> Drawn:
        await self._context._see(self._draws.adapter)
        while not self.finish_reason:
            while self._plan is None and not self._open(num_left):
                await _open_plans.wait()
            assert self._plan is not None
            self.is_busy = True
            try:
                drawn = await draw(self._plan)
            finally:
                self.is_busy = False
                _open_plans.rest()
            if drawn.is_kept and (drawn.tokens or drawn.sent):
                self.is_stale = False
                return drawn
            if self.is_stale:
                self.is_stale = False
            elif drawn.tokens or self._has_ended():
                return drawn
        return Drawn([])

    async def _read(self, plan: Plan, most: int) -> Drawn:
        if not self._knows_stops:
            tokens, _, scores = await plan.read(most=most)
            return Drawn(tokens, scores)
        tokens, texts, scores = await plan.read(self._texts.handle, most)
        self._texts.pushed(self._num_said(tokens))
        return Drawn(tokens, scores, texts)

    def _num_said(self, tokens: list[int]) -> int:
        """Without the stop token."""
        return len(tokens) - (bool(tokens) and tokens[-1] in self._draws.stop_tokens)

    async def _stream(self, plan: Plan) -> Drawn:
        if not self._knows_stops:
            return await self._read(plan, 0)
        flow = self._flow = _host.plans.stream_text(plan.handle, self._texts.handle)
        await wait_ticket(flow)
        if self._flow:
            self._keep(plan)
            self._has_ended()
        drawn, self._kept = self._kept, Drawn([])
        drawn.sent = _host.tickets.take_text(flow)
        return drawn

    def _keep(self, plan: Plan) -> None:
        """Take into the context what has gone to the client: nothing more goes."""
        self._flow = 0
        tokens, _, scores = _host.plans.read(plan.handle, 0, 0, 0)
        for token in tokens:
            self._context._extend(token)
        self._texts.pushed(self._num_said(tokens))
        self._kept = Drawn(tokens, scores, [""] * len(tokens), is_kept=True)

    def _has_ended(self) -> bool:
        """Nothing more comes from this plan: whether from another one."""
        plan = self._plan
        if plan is None:
            return False
        reason = plan.state()["finish_reason"]
        self.release()
        self.is_stale = False
        self.finish_reason = "" if reason == "length" else reason
        return bool(self.finish_reason)

    def _open(self, num_left: int) -> bool:
        """Begin a plan.  False: the limit of plans, or of samplers, is reached."""
        context, draws = self._context, self._draws
        sequence = context.sequence
        if sequence.hidden:
            raise NoPlan
        sequence.claim()
        pending = context._pending()
        num_tokens = sequence.make_room(len(pending), min(num_left, PLAN_TOKENS))
        sampler = 0
        try:
            sampler = draws.open_sampler()
            plan = Plan(sequence.queue, sequence.pages, sequence.kv_len, pending, num_tokens, sampler)
        except QuotaExceeded:
            sequence.trim()
            return False
        except Unsupported as error:
            raise NoPlan from error
        finally:
            if sampler:
                _host.samplers.free(sampler)
        try:
            self._set_up(plan, sequence.kv_len)
            plan.start()
        except BaseException:
            plan.close()
            raise
        self._plan, sequence.source, self.is_stale = plan, self, False
        _open_plans.add(self)
        return True

    def _set_up(self, plan: Plan, kv_len: int) -> None:
        context, draws = self._context, self._draws
        self._knows_stops = True
        if draws.stop_tokens or draws.stop_strings:
            try:
                plan.set_stop(sorted(draws.stop_tokens), draws.stop_strings)
            except InvalidRequest:  # more than a plan takes: the generation looks for them by itself
                self._knows_stops = False
        if draws.logprobs:
            plan.score()
        if draws.adapter is not None:
            plan.set_adapter(draws.adapter.id)
        if draws.drafter == "ngram":
            plan.set_drafter(NUM_DRAFTS, context.tokens[:kv_len])
        if draws.matcher:
            self._set_grammar(plan)
        if programs := in_pass(draws.programs):
            _host.programs.for_plan(plan.handle, programs)

    def _set_grammar(self, plan: Plan) -> None:
        """The grammar behind what was drawn before."""
        said = self._context.tokens[self._draws.began :]
        if not said:
            plan.set_grammar(self._draws.matcher)
            return
        matcher = _host.grammar.fork(self._draws.matcher)
        try:
            if _host.grammar.accept(matcher, said) < len(said):
                raise InvalidRequest("what was added to the context is not in the grammar of this generation")
            plan.set_grammar(matcher)
        finally:
            _host.grammar.free(matcher)

    def release(self) -> None:
        plan = self._plan
        if plan is not None and self._flow:
            _host.tickets.cancel([_host.plans.cancel(plan.handle)])
            with contextlib.suppress(Error):  # that of the plan is told to who waits for it
                self._keep(plan)
        self._plan = None
        if plan is None:
            return
        self.is_stale = True
        if self._context.sequence.source is self:
            self._context.sequence.source = None
        plan.close()
        _open_plans.remove(self)

    def redraw(self) -> None: ...

    def close(self) -> None:
        is_mine = self._context.sequence.source is self
        self.release()
        if is_mine:
            self._context.sequence.trim()
