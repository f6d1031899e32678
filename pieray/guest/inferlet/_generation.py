"""Generation: the loop of forward, sample, wait over a context, as an asynchronous iterator of tokens."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Generator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _host
from . import model as models
from ._host import Err
from ._stops import StopMatcher
from ._waiting import wait_ticket, wait_tickets
from .errors import InvalidRequest, error_of
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


def rules_of(max_tokens: int, stop: str | Iterable[str | int], stop_tokens: Iterable[int] | None, model: str) -> Rules:
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
        self._matcher = StopMatcher(rules.strings)
        self._parts: list[str] = []
        self._is_started = False
        self.tokens: list[int] = []
        """Ids sampled, without the stop token."""
        self.logprobs: list[float] = []
        """Log-probability of each id in `tokens`, if asked for."""
        self.finish_reason = ""
        """"stop" (a stop token or string), "length" (max_tokens or the model's context), "" until it ends."""
        self.stopped_by: str | int | None = None
        """The stop string or stop token that ended it."""

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._parts)

    @property
    def num_tokens(self) -> int:
        """Tokens so far, without the stop token."""
        return len(self.tokens)

    def __aiter__(self) -> AsyncIterator[Token]:
        if self._is_started:
            raise RuntimeError("a generation runs once: call generate again to go on")
        self._is_started = True
        return self._run()

    def __await__(self) -> Generator[Any, None, str]:
        return self._collect().__await__()

    async def _collect(self) -> str:
        async for _ in self:
            pass
        return self.text

    async def _run(self) -> AsyncIterator[Token]:
        """Forward, sample, wait, take: what a token costs is in this loop."""
        context, sequence = self._context, self._context.sequence
        num_left = context.room_for(self._rules.max_tokens)
        take = _host.tickets.take_tokens
        opened = None if self._sampler.is_plain else self._sampler.handle(context.model)
        sample = _host.forward.sample if opened is None else _host.forward.sample_with
        chain = self._sampler.numbers() if opened is None else (opened.id,)
        handle, logprob = 0, None
        stream = models.TextStream(model=context.model)
        try:
            while num_left:
                num_left -= 1
                pending = context.pending()
                handle = sequence.forward(pending, num_left)
                ticket = sample(handle, len(pending) - 1, *chain)
                if self._with_logprobs:
                    token, logprob = await self._take_scored(ticket, handle, len(pending) - 1)
                else:
                    await wait_ticket(ticket)
                    token = take(ticket)[0]
                    sequence.commit(len(pending))
                context.extend(token)
                text = self._accept(token, logprob, stream)
                if text is not None:
                    if not num_left:
                        text = self._end(text)
                    yield Token(text, token, logprob)
                if self.finish_reason:
                    return
            self.finish_reason = "length"
        except Err as err:
            raise error_of(err) from None
        finally:
            sequence.abandon(handle)
            stream.close()
            if opened is not None:
                opened.close()

    def _accept(self, token: int, logprob: float | None, stream: models.TextStream) -> str | None:
        """Take `token` in; the text that goes out, or None if the token ended it and leaves none."""
        rules = self._rules
        if token in rules.tokens:
            self.finish_reason, self.stopped_by = "stop", token
            held = self._matcher.flush()
            self._parts.append(held)
            return held or None
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        text: str = _host.model.stream_push(stream.handle, [token])
        if rules.strings:
            text, self.stopped_by = self._matcher.push(text)
            if self.stopped_by is not None:
                self.finish_reason = "stop"
        self._parts.append(text)
        return text

    def _end(self, text: str) -> str:
        """The last token's text, with what was held back in case a stop string came."""
        held = self._matcher.flush()
        self._parts.append(held)
        self.finish_reason = self.finish_reason or "length"
        return text + held

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
