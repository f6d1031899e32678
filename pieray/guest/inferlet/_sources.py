"""Where a generation's tokens come from: a decode plan, or passes that this program asks for one by one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from . import _host
from ._waiting import wait_ticket, wait_tickets
from .errors import InvalidRequest, QuotaExceeded, Unsupported
from .plans import Plan
from .runtime import random_u64
from .sampler import Sampler, open_chain

if TYPE_CHECKING:
    from .context import Context

TOP_TOKENS = 16
"""Most probable tokens asked for with each sample, among which its log-probability is looked up."""
PLAN_TOKENS = 256
"""Tokens of one plan: it needs page handles for all of them.  A longer generation is several plans."""
NUM_DRAFTS = 8
"""Tokens that a plan drafts a step at most."""

Drafter: TypeAlias = Callable[[list[int]], Sequence[int]]
Drawn: TypeAlias = list[tuple[int, float | None]]


@dataclass(slots=True)
class Draws:
    """How tokens are drawn."""

    sampler: Sampler
    logprobs: bool
    stop_tokens: frozenset[int]
    stop_strings: tuple[str, ...]
    has_grammar: bool = False
    matcher: int = 0  # its matcher at the beginning of the generation, once it is compiled
    drafter: Drafter | str | None = None
    seed: int | None = None
    began: int = 0  # tokens of the context before those drawn
    model: str = ""

    def chain(self) -> tuple[float, int, float, float, int]:
        """The sampler as `forward.sample` takes it; the seed is drawn once."""
        sampler = self.sampler
        if self.seed is None:
            self.seed = sampler.seed
        if self.seed is None:
            self.seed = random_u64() if sampler.temperature else 0
        return float(sampler.temperature), sampler.top_k, float(sampler.top_p), float(sampler.min_p), self.seed

    def open_sampler(self) -> int:
        """A sampler chain's handle, to be freed; 0: greedy."""
        is_greedy = self.sampler.is_plain and not self.sampler.temperature
        return 0 if is_greedy else self.open_chain()

    def open_chain(self) -> int:
        """As `open_sampler`, never 0."""
        return open_chain(self.sampler, self.chain()[-1], self.model)


class NoPlan(Exception):
    """No plan can be opened: the limit of plans is reached, or this engine has none."""


class Source(Protocol):
    """Draws tokens behind a context, whose KV holds all but the last of those drawn so far."""

    is_busy: bool
    """Whether its generation waits for a token."""
    is_stale: bool
    """The context has changed: what was drawn and not taken is void."""
    finish_reason: str
    way: str
    """How it draws, for the log."""

    async def next(self, num_left: int) -> Drawn:
        """One or more tokens, at most `num_left`; none when `finish_reason` says why."""

    def release(self) -> None:
        """The context is about to change."""

    def redraw(self) -> None:
        """The sampler has changed."""

    def close(self) -> None:
        """No more is wanted; a second time does nothing."""


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
        if context.sequence.adapter is not None:
            plan.set_adapter(context.sequence.adapter.id)
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


class PassSource:
    """A forward and a sample per token; the fewest calls."""

    def __init__(self, context: Context, draws: Draws, why: str) -> None:
        self.way = f"a pass per token: {why}"
        self._context = context
        self._draws = draws
        self._handle = 0
        self._chain = draws.chain()
        self._matcher = 0
        self._sampler = 0
        self._mask: list[int] = []
        self._num_accepted = 0
        self._open_sampler()
        self.is_busy = False  # the sequence knows of its pass
        self.is_stale = False
        self.finish_reason = ""

    async def next(self, num_left: int) -> Drawn:
        context, sequence = self._context, self._context.sequence
        self.is_stale = False
        if self._draws.matcher and not self._follow():
            return []
        pending = context.pending()
        handle = self._handle = sequence.forward(pending, num_left)
        row = len(pending) - 1
        if self._sampler:
            ticket = _host.forward.sample_with(handle, row, self._sampler)
        else:
            ticket = _host.forward.sample(handle, row, *self._chain)
        if self._draws.logprobs:
            return [await self._take_scored(ticket, handle, row)]
        await wait_ticket(ticket)
        token = _host.tickets.take_tokens(ticket)[0]
        sequence.commit(len(pending))
        return [(token, None)]

    def _follow(self) -> bool:
        """Bring the matcher to where the context is; False: nothing may follow."""
        if not self._matcher:
            self._matcher = _host.grammar.fork(self._draws.matcher)
            self._open_sampler()
        said = self._context.tokens[self._draws.began + self._num_accepted :]
        if said and _host.grammar.accept(self._matcher, said) < len(said):
            raise InvalidRequest("what was added to the context is not in the grammar of this generation")
        self._num_accepted += len(said)
        mask = _host.grammar.mask(self._matcher)
        if self._mask:
            mask = [word & allowed for word, allowed in zip(mask, self._mask, strict=True)]
        if not any(mask):
            self.finish_reason = "grammar"
            return False
        _host.samplers.allow(self._sampler, mask)
        return True

    async def _take_scored(self, ticket: int, handle: int, row: int) -> tuple[int, float]:
        """The sampled token and its log-probability, looked up among the most probable or scored by itself."""
        context = self._context
        spread = _host.forward.distribution(handle, row, TOP_TOKENS)
        await wait_tickets([ticket, spread])
        token = _host.tickets.take_tokens(ticket)[0]
        probable = dict(zip(*_host.tickets.take_distribution(spread), strict=True))
        context.sequence.commit(row + 1)
        if probability := probable.get(token):
            return token, math.log(probability)
        return token, (await context.logprobs([token]))[0]

    def release(self) -> None: ...

    def redraw(self) -> None:
        self._chain = self._draws.chain()
        self._open_sampler()

    def _open_sampler(self) -> None:
        """A chain for what numbers alone cannot say: the handle of the one before is given back."""
        draws, old = self._draws, self._sampler
        self._mask = draws.sampler.mask(draws.model)
        self._sampler = draws.open_chain() if self._matcher or not draws.sampler.is_plain else 0
        if old:
            _host.samplers.free(old)

    def close(self) -> None:
        self._context.sequence.abandon(self._handle)
        if self._matcher:
            _host.grammar.free(self._matcher)
        if self._sampler:
            _host.samplers.free(self._sampler)
        self._matcher = self._sampler = 0


class DraftSource:
    """Drafts of this program's own, verified in one pass each."""

    def __init__(self, context: Context, draws: Draws) -> None:
        assert callable(draws.drafter)
        self.way = "a pass per draft: the drafter is a function"
        self._context = context
        self._draws = draws
        self._drafter = draws.drafter
        self._sampler = draws.open_sampler()
        self._ticket = 0
        self.is_busy = False  # the sequence knows of its pass
        self.is_stale = False
        self.finish_reason = ""

    async def next(self, num_left: int) -> Drawn:
        context, sequence = self._context, self._context.sequence
        pending = context.pending()
        drafts = list(self._drafter(context.tokens))[: num_left - 1]
        ticket = self._ticket = sequence.verify(pending, drafts, self._sampler)
        sequence.source, self.is_stale = self, False
        await wait_ticket(ticket)
        tokens: list[Any] = _host.tickets.take_tokens(ticket)
        sequence.commit(len(pending))
        return [(token, None) for token in tokens]

    def release(self) -> None:
        self.is_stale = True
        if self._context.sequence.source is self:
            self._context.sequence.source = None

    def redraw(self) -> None:
        old, self._sampler = self._sampler, self._draws.open_sampler()
        if old:
            _host.samplers.free(old)

    def close(self) -> None:
        self.release()
        self._context.sequence.abandon(self._ticket)
        sampler, self._sampler = self._sampler, 0
        if sampler:
            _host.samplers.free(sampler)


def open_source(context: Context, draws: Draws, num_tokens: int) -> Source:
    """A plan wherever the loop allows it, and pays."""
    draws.began = context.position
    if callable(draws.drafter):
        if not draws.logprobs and not draws.has_grammar:
            return DraftSource(context, draws)
        return PassSource(context, draws, "the drafter is a function")
    if num_tokens <= 1:
        return PassSource(context, draws, "there is only one")
    return PlanSource(context, draws)
