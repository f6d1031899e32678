"""Decode plans: generation that the engine runs ahead of this program, without a round trip per token."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from . import _convert, _host
from ._waiting import alone_for_ms, wait_ticket, wake_waiters
from .adapters import Adapter
from .grammar import Matcher
from .sampler import Sampler, SamplerHandle
from .tickets import Ticket, take_none


class Plan:
    """Runs `tokens` on top of the `kv_len` tokens in `pages`, then draws up to `max_tokens` tokens.

    `pages` have room for all of them but the last.  Configure it, `start` it, take what was drawn with `next` or by
    iterating over it; while it is paused it may be changed and cut.  `close` it in the end, or use it in `with`.
    """

    __slots__ = ("_handle", "_watch")

    def __init__(
        self,
        queue: int,
        pages: Sequence[int],
        kv_len: int,
        tokens: Sequence[int],
        max_tokens: int,
        sampler: Sampler | SamplerHandle | int = 0,
    ) -> None:
        self._handle: int | None = None
        self._watch = 0  # ticket
        with _opened(sampler) as chain:
            self._handle = _host.plans.create(queue, pages, kv_len, tokens, max_tokens, chain)

    @property
    def handle(self) -> int:
        """What the handlers take; 0, which they refuse, once the plan is closed."""
        return self._handle or 0

    # -- before start, or while paused

    def set_sampler(self, sampler: Sampler | SamplerHandle | int) -> None:
        """Draw from this sampler chain, as it is now; 0: greedy."""
        with _opened(sampler) as chain:
            _host.plans.set_sampler(self.handle, chain)

    def set_stop(self, tokens: Sequence[int] = (), texts: Sequence[str] = ()) -> None:
        """End after one of `tokens`, or when one of `texts` is in the text drawn."""
        _host.plans.set_stop(self.handle, tokens, texts)

    def set_grammar(self, matcher: Matcher | int) -> None:
        """Draw only what the matcher, as it is now, allows; 0: anything."""
        given = _convert.instance("matcher", matcher, Matcher, int)
        _host.plans.set_grammar(self.handle, given if isinstance(given, int) else given.handle)

    def set_adapter(self, adapter: Adapter | int) -> None:
        """Run through a LoRA adapter; 0: none."""
        given = _convert.instance("adapter", adapter, Adapter, int)
        _host.plans.set_adapter(self.handle, given if isinstance(given, int) else given.id)

    def set_drafter(self, num_drafts: int, history: Sequence[int] = ()) -> None:
        """Draft up to `num_drafts` tokens a step by prompt lookup, in `history` too; 0: off."""
        _host.plans.set_drafter(self.handle, num_drafts, history)

    def score(self) -> None:
        """Compute log-probabilities, for `next_scored`; before start."""
        _host.plans.score(self.handle)

    # -- running

    def start(self) -> None:
        """Begin to run."""
        _host.plans.start(self.handle)

    async def next(self) -> list[int]:
        """What was drawn since the last time: at least one token, or none once the plan has ended or is paused."""
        ticket = _host.plans.next(self.handle)
        await wait_ticket(ticket)
        return list(_host.tickets.take_tokens(ticket))

    async def next_scored(self) -> tuple[list[int], list[float]]:
        """The same, with log-probabilities."""
        ticket = _host.plans.next_scored(self.handle)
        await wait_ticket(ticket)
        tokens, scores = _host.tickets.take_distribution(ticket)
        return list(tokens), list(scores)

    async def read(self, stream: int = 0, most: int = 0) -> tuple[list[int], list[str], list[float]]:
        """What was drawn since the last time, at most `most` tokens (0: all): tokens; the text that a text stream (0:
        none) makes of each; log-probabilities after `score`.  No token comes once the plan has ended or is paused."""
        while True:
            alone_ms = alone_for_ms()
            if not alone_ms:
                self._watch = self._watch or _host.plans.watch(self.handle)
                await wait_ticket(self._watch, keep=True)
                if self._handle is None:  # closed meanwhile
                    return [], [], []
            found = _host.plans.read(self.handle, stream, most, alone_ms)
            if found[0] or alone_ms < 0 or not self._is_running():
                return found

    def _is_running(self) -> bool:
        return bool(self.state()["state"] == "running")

    async def __aiter__(self) -> AsyncIterator[int]:
        """Tokens, until the plan has ended or is paused."""
        while tokens := await self.next():
            for token in tokens:
                yield token

    def pause(self) -> Ticket[None]:
        """Draw no more after the step in progress; await it for that to be so."""
        return Ticket(_host.plans.pause(self.handle), take_none)

    def resume(self) -> None:
        """Go on after a pause."""
        _host.plans.resume(self.handle)

    def truncate(self, num_tokens: int) -> None:
        """Forget what was drawn behind the first `num_tokens` tokens; a plan that had ended is paused then."""
        _host.plans.truncate(self.handle, num_tokens)

    def cancel(self) -> Ticket[None]:
        """End it; await it until no step touches its pages any more."""
        return Ticket(_host.plans.cancel(self.handle), take_none)

    def state(self) -> dict[str, Any]:
        """state ("ready", "running", "paused", "ended"), num_tokens, kv_len, finish_reason, stopped_by, num_steps,
        num_drafted, num_accepted."""
        return dict(json.loads(_host.plans.state(self.handle)))

    def close(self) -> None:
        """Give the handle back; a plan that runs is cancelled.  A second time does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _host.plans.close(handle)
            if self._watch:
                wake_waiters(self._watch)

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def _opened(sampler: Sampler | SamplerHandle | int) -> Iterator[int]:
    """The handle of a chain while it is handed over: plans keep what it was."""
    if isinstance(sampler, Sampler):
        with sampler.handle() as opened:
            yield opened.id
    else:
        given = _convert.instance("sampler", sampler, SamplerHandle, Sampler, int)
        yield given if isinstance(given, int) else given.id
