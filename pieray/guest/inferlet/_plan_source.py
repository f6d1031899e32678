"""A generation's tokens from decode plans."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from . import _host
from ._draws import Drawn, Draws, NoPlan
from .errors import InvalidRequest, QuotaExceeded, Unsupported
from .plans import Plan

if TYPE_CHECKING:
    from .context import Context

PLAN_TOKENS = 256
"""Tokens of one plan: it needs page handles for all of them.  A longer generation is several plans."""
NUM_DRAFTS = 8
"""Tokens that a plan drafts a step at most."""


class PlanSource:
    """A decode plan.  It runs ahead; when the context changes it is cancelled, and another begins where that stands."""

    def __init__(self, context: Context, draws: Draws) -> None:
        self._context = context
        self._draws = draws
        self._plan: Plan | None = None
        self.is_busy = False
        self.is_stale = False
        self.finish_reason = ""
        self.way = "a decode plan"

    async def next(self, num_left: int) -> Drawn:
        while True:
            if self._plan is None:
                self._open(num_left)
            self.is_busy = True
            try:
                drawn = await self._next()
            finally:
                self.is_busy = False
            if self.is_stale:
                self.is_stale = False
            elif drawn:
                return drawn
            elif self._has_ended():
                return []

    async def _next(self) -> Drawn:
        plan = self._plan
        assert plan is not None
        if self._draws.logprobs:
            tokens, scores = await plan.next_scored()
            return list(zip(tokens, scores, strict=True))
        return [(token, None) for token in await plan.next()]

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

    def _open(self, num_left: int) -> None:
        context, draws = self._context, self._draws
        sequence = context.sequence
        if sequence.hidden:
            raise NoPlan
        sequence.claim()
        pending = context.pending()
        num_tokens = sequence.make_room(len(pending), min(num_left, PLAN_TOKENS))
        sampler = 0
        try:
            sampler = draws.open_sampler()
            plan = Plan(sequence.queue, sequence.pages, sequence.kv_len, pending, num_tokens, sampler)
        except (QuotaExceeded, Unsupported) as error:
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

    def _set_up(self, plan: Plan, kv_len: int) -> None:
        context, draws = self._context, self._draws
        if draws.stop_tokens or draws.stop_strings:
            with contextlib.suppress(InvalidRequest):  # more than a plan takes: the generation looks for them as well
                plan.set_stop(sorted(draws.stop_tokens), draws.stop_strings)
        if draws.logprobs:
            plan.score()
        if draws.adapter is not None:
            plan.set_adapter(draws.adapter.id)
        if draws.drafter == "ngram":
            plan.set_drafter(NUM_DRAFTS, context.tokens[:kv_len])
        if draws.matcher:
            self._set_grammar(plan)

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
        plan, self._plan = self._plan, None
        if plan is None:
            return
        self.is_stale = True
        if self._context.sequence.source is self:
            self._context.sequence.source = None
        plan.close()

    def redraw(self) -> None: ...

    def close(self) -> None:
        is_mine = self._context.sequence.source is self
        self.release()
        if is_mine:
            self._context.sequence.trim()
