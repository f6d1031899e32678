"""A generation's tokens from passes that this program asks for one by one, and the choice of a source."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

from . import _convert, _host
from ._draws import Drawn, Draws, NoPlan, Source
from ._plan_source import PlanSource
from ._texts import Texts
from ._waiting import wait_ticket, wait_tickets
from .errors import InvalidRequest
from .sampling import log_softmax
from .tensor import in_pass

if TYPE_CHECKING:
    from .context import Context

TOP_TOKENS = 16
"""Most probable tokens asked for with each sample, among which its log-probability is looked up."""


class PassSource:
    """A forward and a sample per token; the fewest calls."""

    def __init__(self, context: Context, draws: Draws, why: str = "") -> None:
        self.way = why and f"a pass per token: {why}"
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

    async def next(self, num_left: int, most: int = 0) -> Drawn:  # noqa: ARG002 - one is the least that there is
        context, sequence = self._context, self._context.sequence
        self.is_stale = False
        if self._draws.matcher and not self._follow():
            return Drawn([])
        pending = context._pending()
        handle = self._handle = sequence.forward(pending, num_left, self._draws.adapter)
        row = len(pending) - 1
        if programs := in_pass(self._draws.programs):
            _host.programs.for_pass(handle, programs)
        if self._sampler:
            ticket = _host.forward.sample_with(handle, row, self._sampler)
        else:
            ticket = _host.forward.sample(handle, row, *self._chain)
        if self._draws.logprobs:
            return await self._take_scored(ticket, handle, row)
        await wait_ticket(ticket)
        token = _host.tickets.take_tokens(ticket)[0]
        sequence.commit(len(pending))
        return Drawn([token])

    async def stream(self, num_left: int) -> Drawn:
        return await self.next(num_left)

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

    async def _take_scored(self, ticket: int, handle: int, row: int) -> Drawn:
        """The sampled token and its log-probability, looked up among the most probable or scored by itself."""
        context = self._context
        spread = _host.forward.distribution(handle, row, TOP_TOKENS)
        await wait_tickets([ticket, spread])
        token = _host.tickets.take_tokens(ticket)[0]
        probable = dict(zip(*_host.tickets.take_distribution(spread), strict=True))
        context.sequence.commit(row + 1)
        if probability := probable.get(token):
            return Drawn([token], [math.log(probability)])
        return Drawn([token], await context._scores([token], self._draws.adapter))

    def release(self) -> None: ...

    def redraw(self) -> None:
        self._chain = self._draws.chain()
        self._open_sampler()

    def _open_sampler(self) -> None:
        """A chain for what numbers alone cannot say: the handle of the one before is given back."""
        draws, old = self._draws, self._sampler
        self._mask = draws.sampler.mask(draws.model)
        is_plain = draws.sampler.is_plain and not draws.draws_with_programs
        self._sampler = draws.open_chain() if self._matcher or not is_plain else 0
        if old:
            _host.samplers.free(old)

    def close(self) -> None:
        self._context.sequence.abandon(self._handle)
        if self._matcher:
            _host.grammar.free(self._matcher)
        if self._sampler:
            _host.samplers.free(self._sampler)
        self._matcher = self._sampler = 0


class ChooseSource:
    """A pass per token over the context and those beside it, and a function of this program's that takes the token."""

    def __init__(self, context: Context, draws: Draws) -> None:
        assert draws.choose is not None
        self.way = "a pass per token: the token is chosen by a function"
        self._contexts = [context, *draws.beside]
        self._draws = draws
        self._steps: list[Any] = []
        self.is_busy = False  # the sequences know of their passes
        self.is_stale = False
        self.finish_reason = ""

    async def next(self, num_left: int, most: int = 0) -> Drawn:  # noqa: ARG002 - one is all that there is
        self.is_stale = False
        adapter = self._draws.adapter
        self._steps = steps = [one.forward(adapter=None if n else adapter) for n, one in enumerate(self._contexts)]
        asked = [step.logits() for step in steps]  # all before any is awaited: they share a step
        for step in steps:
            await step
        rows = [await one for one in asked]
        chosen = self._draws.choose(*rows)  # type: ignore[misc]
        if inspect.isawaitable(chosen):
            chosen = await chosen
        if chosen is None:
            self.finish_reason = "stop"
            return Drawn([])
        token = _convert.integer("the token chosen", chosen, 0, len(rows[0]) - 1)
        for one in self._contexts[1:]:
            one._add([token])
        scores = [log_softmax(rows[0])[token]] if self._draws.logprobs else []
        return Drawn([token], scores)

    async def stream(self, num_left: int) -> Drawn:
        return await self.next(num_left)

    def release(self) -> None: ...

    def redraw(self) -> None: ...

    def close(self) -> None:
        for one, step in zip(self._contexts, self._steps, strict=False):
            one.sequence.abandon(step.id)
        self._steps = []


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

    async def next(self, num_left: int, most: int = 0) -> Drawn:
        context, sequence = self._context, self._context.sequence
        if sequence.dropped:
            raise NoPlan  # a verification has no positions of its own
        await context._see(self._draws.adapter)
        pending = context._pending()
        drafted: Any = self._drafter(context.tokens)
        if inspect.isawaitable(drafted):
            drafted = await drafted
        drafts = _convert.u32s("drafts of the drafter", drafted)[: (most or num_left) - 1]
        ticket = self._ticket = sequence.verify(pending, drafts, self._sampler, self._draws.adapter)
        sequence.source, self.is_stale = self, False
        await wait_ticket(ticket)
        tokens: list[int] = _host.tickets.take_tokens(ticket)
        sequence.commit(len(pending))
        return Drawn(tokens)

    async def stream(self, num_left: int) -> Drawn:
        return await self.next(num_left)

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


def open_source(context: Context, draws: Draws, num_tokens: int, texts: Texts) -> Source:
    """A plan wherever the loop allows it, and pays."""
    draws.began = context.position
    if draws.choose is not None:
        return ChooseSource(context, draws)
    if callable(draws.drafter):
        if not draws.logprobs and not draws.has_grammar and not context.sequence.dropped:
            return DraftSource(context, draws)
        return PassSource(context, draws, "the drafter is a function")
    if num_tokens <= 1:
        return PassSource(context, draws)
    return PlanSource(context, draws, texts)
