"""Generation: the loop of forward, sample, wait over a context, as an asynchronous iterator of tokens."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Generator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _host
from . import model as models
from ._host import Err
from ._loop import wait_ticket
from ._stops import StopMatcher
from .errors import InvalidRequest, error_of
from .runtime import random_u64
from .sampler import Sampler

if TYPE_CHECKING:
    from .context import Context


#: Most probable tokens asked for with each sample, among which its log-probability is looked up.
TOP_TOKENS = 16


class Token(NamedTuple):
    """A sampled token."""

    text: str
    """The text that may go out with it: none while a character or a stop string is incomplete."""
    id: int
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """When a generation ends."""

    max_tokens: int
    strings: tuple[str, ...] = ()
    tokens: frozenset[int] = field(default_factory=frozenset)


def rules_of(
    max_tokens: int, stop: str | Iterable[str | int], stop_tokens: Iterable[int] | None, model: str
) -> Rules:
    """Rules from what `generate` was given.  `stop_tokens` None: those of the model."""
    if max_tokens < 0:
        raise InvalidRequest(f"max_tokens is at least 0; given {max_tokens}")
    stops = [stop] if isinstance(stop, str) else list(stop)
    strings = tuple(item for item in stops if isinstance(item, str) and item)
    tokens = models.stop_tokens(model) if stop_tokens is None else frozenset(stop_tokens)
    return Rules(max_tokens, strings, tokens | {item for item in stops if isinstance(item, int)})


class Generation:
    """Tokens as they come: iterate it, or await it for the text.

    Between two tokens the context is complete and may be read, forked or left: what is not asked for is not
    generated.  Afterwards `text`, `num_tokens` and `finish_reason` tell what came.
    """

    def __init__(self, context: Context, sampler: Sampler, rules: Rules, *, logprobs: bool) -> None:
        self._context = context
        self._sampler = sampler
        self._rules = rules
        self._with_logprobs = logprobs
        self._parts: list[str] = []
        self._iterator: AsyncIterator[Token] | None = None
        self.tokens: list[int] = []
        """Ids sampled, without the stop token."""
        self.logprobs: list[float] = []
        """Log-probability of each id in `tokens`, if asked for."""
        self.finish_reason = ""
        """"stop" (a stop token or string), "length" (max_tokens or the model's context), "" while it runs."""
        self.stopped_by: str | int | None = None
        """The stop string or stop token that ended it."""

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._parts)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def __aiter__(self) -> AsyncIterator[Token]:
        if self._iterator is None:
            self._iterator = self._run()
        return self._iterator

    def __await__(self) -> Generator[Any, None, str]:
        return self._collect().__await__()

    async def _collect(self) -> str:
        async for _ in self:
            pass
        return self.text

    async def _run(self) -> AsyncIterator[Token]:
        """Forward, sample, wait, take: all that a token costs is in this loop."""
        context, sequence, rules = self._context, self._context.sequence, self._rules
        chain, num_left = self._chain(), context.room_for(rules.max_tokens)
        forward, wait, take = sequence.forward, wait_ticket, _host.tickets.take_tokens
        sample, push = _host.forward.sample, _host.model.stream_push
        stop_tokens, matcher, handle, spread = rules.tokens, StopMatcher(rules.strings), 0, 0
        stream = models.TextStream(model=context.model)
        try:
            while num_left:
                num_left -= 1
                pending = context.pending()
                handle, row = forward(pending, num_left), len(pending) - 1
                ticket = sample(handle, row, *chain)
                if self._with_logprobs:
                    spread = _host.forward.distribution(handle, row, self._num_top)
                await wait(ticket)
                token = take(ticket)[0]
                sequence.commit(row + 1)
                logprob = await self._logprob(token, spread) if spread else None
                context.extend(token)
                if token in stop_tokens:
                    self._finish("stop", token)
                    if held := matcher.flush():
                        yield self._emit(held, token, logprob)
                    return
                text = push(stream.handle, [token])
                if rules.strings:
                    text = self._match(matcher, text, is_last=not num_left)
                yield self._emit(text, token, logprob)
                if self.finish_reason:
                    return
            self._finish("length")
        except Err as err:
            raise error_of(err) from None
        finally:
            sequence.abandon(handle)
            stream.close()
