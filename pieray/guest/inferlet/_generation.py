"""Generation: what is drawn behind a context, as an asynchronous iterator of tokens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from . import _convert, _host, log
from . import model as models
from ._draws import Choose, Drafter, Drawn, Draws, NoPlan, Source
from ._plan_source import PlanSource
from ._sources import PassSource, open_source
from ._texts import Texts
from .adapters import Adapter
from .errors import Error, InvalidRequest
from .sampler import Sampler
from .tensor import TensorProgram

if TYPE_CHECKING:
    from .context import Context


OnToken: TypeAlias = Callable[["Token"], "Sampler | str | Sequence[int] | bool | None"]


class Token(NamedTuple):
    """A sampled token."""

    text: str
    """The text that may go out with it: none while a character or a stop string is incomplete."""
    id: int
    logprob: float | None = None


class Finish(NamedTuple):
    """How a generation ended: the last of its `events`."""

    reason: str
    """See `Generation.finish_reason`."""
    stopped_by: str | int | None
    """The stop string or stop token, if one ended it."""
    num_tokens: int
    """Tokens, without the stop token."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When a generation ends."""

    max_tokens: int
    strings: tuple[str, ...] = ()
    tokens: frozenset[int] = field(default_factory=frozenset)


def rules_of(max_tokens: int, stop: str | Iterable[str | int], stop_tokens: Iterable[int] | None, model: str) -> Rules:
    """Rules from what `generate` was given.  `stop_tokens` None: those of the model."""
    max_tokens = _convert.u32("max_tokens", max_tokens)
    stops = [stop] if isinstance(stop, str) else _convert.items("stop", stop, "texts and token ids")
    texts = _convert.texts("stop", [item for item in stops if item != "" and not isinstance(item, int)])
    special = {text: token for text in texts if (token := models.special_token(text, model)) is not None}
    strings = [text for text in texts if text not in special]
    tokens = models.stop_tokens(model) if stop_tokens is None else _convert.u32s("stop_tokens", stop_tokens)
    ids = _convert.u32s("stop", [item for item in stops if isinstance(item, int)])
    return Rules(max_tokens, tuple(strings), frozenset(tokens).union(ids, special.values()))


class Generation:
    """Tokens as they come: iterate it, await it for the text, or iterate `events` for the tokens and how it ended.

    Between two tokens the context is complete and may be read, forked or left: what is not asked for is not
    generated.  A stop token is given out only if text was held back for it.  At any time, and afterwards, `text`,
    `tokens`, `num_tokens`, `logprobs`, `finish_reason` and `stopped_by` tell what came.  It runs once.
    """

    def __init__(
        self,
        context: Context,
        sampler: Sampler,
        rules: Rules,
        *,
        logprobs: bool,
        grammar: Any = None,
        drafter: Drafter | str | None = None,
        adapter: Adapter | None = None,
        on_token: OnToken | None = None,
        choose: Choose | None = None,
        beside: Sequence[Context] = (),
        deadline_s: float | None = None,
        programs: Sequence[TensorProgram] = (),
    ) -> None:
        if drafter is not None and drafter != "ngram" and not callable(drafter):
            raise InvalidRequest(f"a drafter is a function or ngram; given {_convert.shown(drafter)}")
        if choose is not None and not callable(choose):
            raise InvalidRequest(f"choose is a function of logits; given {_convert.shown(choose)}")
        if choose is None and beside:
            raise InvalidRequest("contexts beside this one are for `choose`, which is not given")
        if choose is not None and (grammar is not None or drafter is not None):
            raise InvalidRequest("`choose` takes the token itself: give it neither grammar, schema nor drafter")
        if programs and (choose is not None or callable(drafter)):
            raise InvalidRequest("tensor programs run in the engine's own draws: give neither `choose` nor a drafter")
        if on_token is not None and not callable(on_token):
            raise InvalidRequest(f"on_token is a function; given {_convert.shown(on_token)}")
        self._context = context
        self._rules = rules
        self._draws = Draws(
            sampler,
            logprobs,
            rules.tokens,
            rules.strings,
            grammar is not None,
            drafter=drafter,
            adapter=adapter or context.sequence.adapter,
            model=context.model,
            choose=choose,
            beside=beside,
            programs=programs,
        )
        self._grammar = grammar
        self._owns_grammar = False
        self._on_token = on_token
        self._deadline_s = None if deadline_s is None else _convert.number("deadline_s", deadline_s, 0)
        self._deadline: float | None = None  # by the loop's clock, from when it begins to draw
        self._source: Source | None = None
        self._texts: Texts | None = None
        self._parts: list[str] = []
        self._is_started = False
        self.tokens: list[int] = []
        """Ids sampled, without the stop token."""
        self.logprobs: list[float] = []
        """Log-probability of each id in `tokens`, if asked for."""
        self.stop_logprob = 0.0
        """Log-probability of the stop token that ended it, if one did and they were asked for: with it, `logprobs` add
        up to that of all that was drawn."""
        self.finish_reason = ""
        """"stop" (a stop token or string, or `on_token` said so), "length" (max_tokens or the model's context: a text
        under a grammar is cut there like any other), "grammar" (nothing may follow), "deadline" (`deadline_s` is over),
        "" until it ends."""
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
        return self._begun()

    def _begun(self, *, sends: bool = False) -> AsyncIterator[Token]:
        if self._is_started:
            raise RuntimeError("a generation runs once: call generate again to go on")
        self._is_started = True
        return self._run(sends=sends)

    def __await__(self) -> Generator[Any, None, str]:
        return self._collect().__await__()

    async def events(self) -> AsyncIterator[Token | Finish]:
        """The tokens, and a `Finish` at the end."""
        async for token in self:
            yield token
        yield Finish(self.finish_reason, self.stopped_by, self.num_tokens)

    async def _collect(self, *, sends: bool = False) -> str:
        """All of the text; `sends`: as `session.stream` has it."""
        async for _ in self._begun(sends=sends):
            pass
        return self.text

    async def _run(self, *, sends: bool = False) -> AsyncIterator[Token]:
        """Draw, take in, give out: what a token costs is in this loop."""
        context = self._context
        num_left = context._room_for(self._rules.max_tokens)
        texts = self._texts = Texts(context.model, self._rules.strings, self.tokens, context._tokens)
        source = self._begin(open_source(context, self._draws, num_left, texts))
        draw = self._draw if self._deadline_s is None else self._draw_in_time
        try:
            if num_left and self._grammar is not None:
                self._draws.matcher = await self._open_grammar()
            while num_left:
                source, drawn = await draw(source, num_left, sends=sends)
                self._parts.append(drawn.sent)
                if not drawn.tokens:
                    self.finish_reason = source.finish_reason
                    self._parts.append(texts.rest())
                    break
                for place, token in enumerate(drawn.tokens):
                    num_left -= 1
                    if not drawn.is_kept:
                        context._extend(token)
                    text = self._accept(drawn, place)
                    if text is not None:
                        if not num_left:
                            text = self._end(text)
                        if sends and text:
                            _host.session.send(text)
                        out = Token(text, token, drawn.logprobs[place] if drawn.logprobs else None)
                        if self._on_token is not None:
                            self._change(self._on_token(out))
                        yield out
                    if self.finish_reason:
                        return
                    if source.is_stale and not drawn.is_kept:
                        num_left = min(num_left, context._room_for(num_left))
                        break
            self.finish_reason = self.finish_reason or "length"
        finally:
            source.close()
            texts.close()
            self._close_grammar()

    async def _draw(self, source: Source, num_left: int, *, sends: bool) -> tuple[Source, Drawn]:
        """More tokens, and the source that they are of; what is drawn ahead of `on_token` may be void."""
        try:
            if self._on_token is not None:
                return source, await source.next(num_left, most=1)
            return source, await (source.stream(num_left) if sends else source.next(num_left))
        except NoPlan:
            source = self._begin(PassSource(self._context, self._draws, "no plan is free"))
            return source, await source.next(num_left)

    async def _draw_in_time(self, source: Source, num_left: int, *, sends: bool) -> tuple[Source, Drawn]:  # noqa: ARG002
        """The same, and nothing once the deadline has passed.  What it gives is sent here: none of it may be lost."""
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + (self._deadline_s or 0)
        try:
            async with asyncio.timeout_at(self._deadline) as timeout:
                if loop.time() < self._deadline:
                    return await self._draw(source, num_left, sends=False)
        except TimeoutError:
            if not timeout.expired():
                raise
        source = self._source or source
        source.finish_reason = "deadline"
        return source, Drawn([])

    @property
    def is_plan(self) -> bool:
        """Whether it runs as decode plans, so that a token costs no round trip."""
        return isinstance(self._source, PlanSource)

    def _begin(self, source: Source) -> Source:
        """Draw from this source; the log says which way, once each, where it is not the usual one."""
        self._source = source
        if source.way:
            _say_once(f"generate runs as {source.way}")
        return source

    async def _open_grammar(self) -> int:
        """The handle of a matcher at the beginning of this generation."""
        given = self._grammar
        if hasattr(given, "compile"):
            given = self._grammar = await given.compile(self._context.model)
            self._owns_grammar = True
        handle: int = given.handle
        return handle

    def _close_grammar(self) -> None:
        if self._owns_grammar:
            self._owns_grammar = False
            self._grammar.close()

    def _change(self, change: Sampler | str | Sequence[int] | bool | None) -> None:
        """What `on_token` has returned."""
        if change is None or change is True:
            return
        context = self._context
        if change is False:
            self.finish_reason = self.finish_reason or "stop"
        elif isinstance(change, Sampler):
            self._draws.sampler, self._draws.seed = change, None
            context.sequence.release()
            if self._source is not None:
                self._source.redraw()
        else:
            context.append(change)

    def _accept(self, drawn: Drawn, place: int) -> str | None:
        """Take a token in; the text that goes out, or None if the token ended it and leaves none."""
        rules, texts, token = self._rules, self._texts, drawn.tokens[place]
        assert texts is not None
        if token in rules.tokens:
            self.finish_reason, self.stopped_by = "stop", token
            self.stop_logprob = drawn.logprobs[place] if drawn.logprobs else 0.0
            held = texts.rest()
            self._parts.append(held)
            return held or None
        text = texts.push(token) if drawn.texts is None else drawn.texts[place]
        self.tokens.append(token)
        if drawn.logprobs:
            self.logprobs.append(drawn.logprobs[place])
        is_last = drawn.texts is None or place + 1 == len(drawn.tokens)
        if is_last and (met := texts.stopped_by()) is not None:
            self.finish_reason, self.stopped_by = "stop", met
        self._parts.append(text)
        return text

    def _end(self, text: str) -> str:
        """The last token's text, with what was held back in case a stop string came."""
        assert self._texts is not None
        held = self._texts.rest()
        self._parts.append(held)
        self.finish_reason = self.finish_reason or "length"
        return text + held


@_host.cached
def _say_once(text: str) -> None:
    with contextlib.suppress(Error):  # a full log is no reason not to generate
        log.debug(text)
