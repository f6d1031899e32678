"""A context: a growing text, its tokens and their KV.  Written on the handlers alone: so could you."""

from __future__ import annotations

from asyncio import gather
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from . import _convert, _host, images
from . import model as models
from ._chat import Chat, Setting, reply_of
from ._draws import Choose, Drafter
from ._generation import Generation, OnToken, rules_of
from ._sequence import KvSequence, Placed
from ._snapshots import Snapshots
from ._waiting import wait_ticket, wait_tickets
from .adapters import Adapter
from .embeds import Embedding
from .errors import InvalidRequest, Unsupported
from .forward import Pass
from .grammar import Grammar, Matcher
from .sampler import Sampler, sampler_of
from .structured import collect_json
from .tensor import TensorProgram
from .tools import specs_of

if TYPE_CHECKING:
    from typing import Self, Unpack

    from ._options import FreeOptions, Options

T = TypeVar("T")
Content: TypeAlias = "str | Embedding | Sequence[images.Part]"
"""Of a message: a text, an image (see `images.see`), or its parts."""

#: Rows scored in one pass, so that a long continuation stays within the limit of tickets.
SCORE_ROWS = 256
#: Continuations that `generate_many` draws at one time: each is a fork and a plan of its own.
MOST_AT_ONCE = 1024


class Context(Snapshots):
    """Text that a model reads and continues.

    What is appended waits until it is needed or `flush`ed; the last token always waits, for the next one is
    sampled from its row.  `fork` shares the KV so far, copy-on-write.  Close it, use it as an asynchronous
    context manager, or let it go: its pages are given back.  `save` keeps it for `Context.open`, here or elsewhere.
    """

    def __init__(
        self,
        text: str | Sequence[int] = "",
        *,
        model: str = "",
        adapter: Adapter | None = None,
        tools: Iterable[Any] = (),
        template: Mapping[str, Any] | None = None,
        bos: bool = True,
        reuse: bool = True,
    ) -> None:
        """`adapter`: LoRA, in all passes of this context and its forks.  `tools` (see `tools.tool`): what the model's
        chat template shows it of them (the system message, if the template knows of none).  `template`: further names
        that the chat template knows, such as {"enable_thinking": False}.  `bos`: plain text that the context begins
        with gets the tokens before it that the model's tokenizer puts there; rendered messages have theirs from the
        template.  `reuse`: whether it takes pages that hold what it is to compute, and leaves its own to be found by
        inferlets of the tenant: the texts are the same."""
        self.model = _convert.text("model", model)
        names = dict(_convert.instance("template", template, Mapping)) if template is not None else {}  # type: ignore[type-abstract]
        self._setting = Setting(self.model, specs_of(tools), names)
        self._bos = _convert.boolean("bos", bos)
        if adapter is not None:
            _convert.instance("adapter", adapter, Adapter)
        self.sequence = KvSequence(model, adapter, _convert.boolean("reuse", reuse))
        self._tokens: list[int] = []
        self._marks: list[tuple[int, Chat]] = []
        self._unplaced: list[Embedding] = []  # images of messages that wait for another one
        self.append(text)

    @classmethod
    def of(cls, prompt: str, *, chat: bool = False) -> Self:
        """A context that begins with a prompt: text as it is, or with `chat` a user's message, the reply begun."""
        context = cls()
        if chat:
            context.user(prompt).cue()
        else:
            context.append(prompt)
        return context

    # -- content

    def append(self, text: str | Sequence[int], photos: Sequence[Embedding] = ()) -> Context:
        """Add text, or tokens, at the end; in it `images.token()` stands for each of the `photos`, in order."""
        self.sequence.check_open()
        photos = _convert.instances("photos", photos, Embedding)
        added = self._tokens_of(text)
        if added and not self._tokens and self._bos and isinstance(text, str):
            bos = models.info(self.model).get("bos_tokens", [])
            added = added if added[: len(bos)] == bos else [*bos, *added]
        return self._add_seen(added, photos) if photos else self._add(added)

    def _add_seen(self, tokens: list[int], photos: Sequence[Embedding]) -> Context:
        tokens, placed = self._laid(tokens, len(self._tokens), photos)
        self._add(tokens)
        self.sequence.images += placed
        return self

    def _add(self, tokens: list[int]) -> Context:
        if tokens:
            self.sequence.release()
            self._tokens += tokens
        return self

    def chat(self, role: str, content: Content, **more: Any) -> Context:
        """Add a message, as the model's chat template writes it; an open reply is closed first.

        `content`: a text, an image that `images.see` has given, or a list of both.  `more`: other keys of the message
        that the template knows, such as `name`.  A message that the template does not take without the next one (a
        system message, in some) is no text before that comes.
        """
        text, seen = images.told(content)
        return self._say(self._closed().add({"role": role, "content": text} | more), seen, cue=False)

    def system(self, content: Content) -> Context:
        """Add a system message."""
        return self.chat("system", content)

    def user(self, content: Content) -> Context:
        """Add a user's message."""
        return self.chat("user", content)

    async def image(self, data: images.Data, text: str = "") -> Context:
        """Add a user's message of an image, a file's bytes or its base64, and a text behind it.  See `images.see`."""
        self.sequence.check_open()
        text = _convert.text("text", text)
        photo = await images.see(data, model=self.model)
        return self.user([photo, text] if text else [photo])

    def assistant(self, content: Content) -> Context:
        """Add an assistant's message, as if it had been generated."""
        return self.chat("assistant", content)

    def tool(self, content: Content, *, name: str = "") -> Context:
        """Add what a tool answered: the first of the last reply's calls (of that name) that has no answer yet."""
        return self.chat("tool", content, **({"name": name} if name else {}))

    def tool_results(self, contents: Iterable[Content]) -> Context:
        """Add what the tools answered that the last reply has called, in the order of its calls."""
        chat = self._closed()
        for content in _convert.items("contents", contents, "texts"):
            chat = chat.add({"role": "tool", "content": content})
        return self._say(chat, cue=False)

    def cue(self) -> Context:
        """Begin the assistant's turn now, so that `append` can begin the reply; `generate` does it by itself."""
        return self if self._chat.is_open else self._say(self._chat, cue=True)

    def _closed(self) -> Chat:
        """The conversation, with the reply that was open taken in."""
        chat = self._chat
        if not chat.is_open:
            return chat
        tokens, ended_by = self._tokens[chat.end :], ""
        if tokens and tokens[-1] in models.stop_tokens(self.model):
            ended_by = models.detokenize([tokens.pop()], model=self.model)
        text = models.detokenize(tokens, model=self.model)
        return chat.replied(*reply_of(text, self.model, len(chat.messages)), ended_by, len(self._tokens))

    def _say(self, chat: Chat, seen: Sequence[Embedding] = (), *, cue: bool) -> Context:
        """Bring the text to what the conversation is, with further images; `cue`: with the beginning of the assistant's
        turn."""
        self.sequence.check_open()
        unplaced = [*self._unplaced, *seen]
        try:
            text, chat = chat.text(self._setting, cue=cue)
        except InvalidRequest:
            if cue or not chat.may_wait:
                raise
            self._unplaced = unplaced
            return self._mark(replace(chat, is_waiting=True))
        start = chat.start if chat.said else len(self._tokens)
        if text.startswith(chat.said):
            self._add_seen(self._tokens_of(text[len(chat.said) :]), unplaced)
        elif chat.end == len(self._tokens):  # the template writes the messages otherwise, now that there is another one
            before = [one.embedding for one in self.sequence.images if one.start >= start]
            self._rewrite(start, *self._laid(self._tokens_of(text), start, before + unplaced))
        else:
            raise Unsupported(
                "this model's chat template writes the messages since the last reply otherwise now, and other text was "
                "appended behind them: add them at once, with tool_results for instance"
            )
        self._unplaced = []
        return self._mark(replace(chat, start=start, end=len(self._tokens), said=text, is_open=cue, is_waiting=False))

    def _laid(self, tokens: list[int], start: int, seen: Sequence[Embedding]) -> tuple[list[int], list[Placed]]:
        """Tokens of a text that is to stand at `start`, with the rows of the images in it."""
        if not seen:
            return tokens, []
        mark = images.token(self.model)
        if tokens.count(mark) != len(seen):
            raise InvalidRequest(
                f"the text has {tokens.count(mark)} places for {len(seen)} images: {tokens.count(mark)} times "
                f"{models.detokenize([mark], model=self.model)!r}"
            )
        laid: list[int] = []
        placed, left = [], iter(seen)
        for one in tokens:
            if one == mark:
                photo = next(left)
                place = start + len(laid)
                placed.append(Placed(place, place + photo.num_rows, photo))
                laid += [mark] * photo.num_rows
            else:
                laid.append(one)
        return laid, placed

    def _rewrite(self, start: int, tokens: list[int], placed: list[Placed]) -> None:
        """These tokens and images in place of those from `start` on; what is the same stays."""
        old = self._tokens[start:]
        same = next(
            (at for at, pair in enumerate(zip(old, tokens, strict=False)) if pair[0] != pair[1]),
            min(len(old), len(tokens)),
        )
        length = self.sequence.cut(start + same)
        self._cut(length)
        self._add(tokens[length - start :])
        self.sequence.images += [one for one in placed if one.end > length]

    def truncate(self, length: int) -> Context:
        """Keep the first `length` tokens, and the messages that end within them."""
        self.sequence.check_open()
        _convert.integer("length", length, 0, len(self._tokens))
        if self.sequence.cut(length) != length:
            raise InvalidRequest(f"an image stands at {self.sequence.cut(length)}: it stays whole; given {length}")
        self._cut(length)
        return self

    def _cut(self, length: int) -> None:
        self.sequence.release()
        del self._tokens[length:]
        self.sequence.truncate(length)
        while self._marks and (self._marks[-1][0] > length or self._marks[-1][1].is_waiting):
            self._marks.pop()

    @property
    def tokens(self) -> list[int]:
        """All tokens, the sampled ones included."""
        return list(self._tokens)

    @property
    def position(self) -> int:
        """Number of tokens: where the next one goes."""
        return len(self._tokens)

    @property
    def text(self) -> str:
        """All of it, special tokens included."""
        return models.detokenize(self._tokens, model=self.model)

    def _tokens_of(self, text: str | Sequence[int]) -> list[int]:
        if isinstance(text, str):
            return models.tokenize(text, self.model) if text else []
        return _convert.u32s("tokens", text)

    @property
    def _chat(self) -> Chat:
        return self._marks[-1][1] if self._marks else Chat()

    def _mark(self, chat: Chat) -> Context:
        self._marks.append((len(self._tokens), chat))
        return self

    # -- life

    def fork(self) -> Context:
        """A context with the same content, sharing the KV that is there.  Flush first: what waits is run by each."""
        other = Context(model=self.model, bos=self._bos)
        other._setting = self._setting
        other.sequence = self.sequence.fork()
        other._tokens = list(self._tokens)
        other._marks = list(self._marks)
        other._unplaced = list(self._unplaced)
        return other

    def close(self) -> None:
        """Give the pages back; a second time does nothing."""
        self.sequence.close()

    async def __aenter__(self) -> Context:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    # -- computing

    def generate(
        self,
        max_tokens: int = 256,
        *,
        sampler: Sampler | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        logit_bias: Mapping[int | str, float] | None = None,
        seed: int | None = None,
        stop: str | Iterable[str | int] = (),
        stop_tokens: Iterable[int] | None = None,
        logprobs: bool = False,
        grammar: Grammar | Matcher | None = None,
        schema: Any = None,
        drafter: Drafter | str | None = None,
        adapter: Adapter | None = None,
        on_token: OnToken | None = None,
        choose: Choose | None = None,
        beside: Iterable[Context] = (),
        deadline_s: float | None = None,
        programs: Iterable[TensorProgram] = (),
    ) -> Generation:
        """Continue the text: iterate for tokens, or await for the text.

        Greedy, unless a `sampler` or one of its numbers is given: then it draws, with the defaults of `Sampler` for
        what is not given, so that a `seed` alone draws at temperature 1.  A `logit_bias` alone stays greedy.

        It ends after `max_tokens`, at a stop token or a stop string, or when the model's context is full.  `stop`:
        strings, which do not go out (one that a special token spells counts as that token), and token ids;
        `stop_tokens` replaces the model's own.  Every sampled token stays in the context, that of a stop too:
        `truncate` takes it out.  The texts of consecutive generations are, joined, the text of all their tokens: a
        character that one ends within goes out with the next.

        `grammar`: draw only what it allows, or what a matcher as it is now allows.  `schema`, in its place: the same
        for a JSON schema (a dict), a type (see `structured.schema_of`) or a Grammar.  Such a text ends with a stop
        token, or before it is whole where `max_tokens` ends it: `finish_reason` is "length" then.

        `drafter`: "ngram" drafts by prompt lookup in the engine.  A function (it may be a coroutine) takes the ids of
        all tokens of the context and returns the ids that it expects next, perhaps none; they are verified in one pass.
        A `DraftModel` asks another model for them.  All of this changes the speed, not the text.

        `on_token`: a function that takes each Token before it is given out, and returns None (or True) to go on, a
        Sampler to draw the next tokens with, text or token ids to append to the context, or False to end.

        `choose`: a sampler of your own, a function (it may be a coroutine) that takes the logits of the next token, a
        list of floats, and returns the id of the token, or None to end; `sampling` has what it is made of.  `beside`:
        other contexts whose logits it takes too, as further arguments; every token is appended to them as well.
        Log-probabilities are those of this context's own logits.  It takes a pass per token, and all logits travel to
        this program: what the engine's sampler can do is faster there.

        `deadline_s`: so many seconds after it has begun to run it ends with what it has, whatever it waits for
        (`finish_reason` is "deadline").

        `adapter`: LoRA for this generation in place of the context's.  All that it runs goes through it: what waits
        (see `flush`), what it samples and what `on_token` appends.  The KV that was there before stays, as does the KV
        it leaves; so do not flush a prompt that the adapter is to read.  The last token waits, as always.

        `programs`: tensor programs (see `tensor`), each run where its stage says: a logits processor and a sampler in
        the draws, others in the passes.  They are kept open until it has ended.  Unlike `choose` they run in the
        engine, and in plans.

        Cancelling the task that awaits it ends it: no more tokens are computed, and pages that hold none of the context
        are given back; the rest stays with the context until that is closed.

        It runs as decode plans, without a round trip per token, unless `drafter` or `choose` is a function: see
        `is_plan`.  Past
        the limit of plans, generations wait for each other's.
        """
        self.sequence.check_open()
        if self._chat.awaits_reply and self._marks[-1][0] == len(self._tokens):
            self.cue()
        rules = rules_of(max_tokens, stop, stop_tokens, self.model)
        chosen = sampler_of(sampler, temperature, top_k, top_p, min_p, seed, typical_p, logit_bias)
        if schema is not None:
            if grammar is not None:
                raise InvalidRequest("give either grammar or schema: a generation follows one of them")
            grammar = Grammar.of(schema)
        if adapter is not None:
            _convert.instance("adapter", adapter, Adapter)
        if grammar is not None:
            _convert.instance("grammar", grammar, Grammar, Matcher)
            rules = replace(rules, tokens=rules.tokens | models.stop_tokens(self.model))
        return Generation(
            self,
            chosen,
            rules,
            logprobs=logprobs,
            grammar=grammar,
            drafter=drafter,
            adapter=adapter,
            on_token=on_token,
            choose=choose,
            beside=_convert.instances("beside", list(beside), Context),
            deadline_s=deadline_s,
            programs=_convert.instances("programs", list(programs), TensorProgram),
        )

    async def generate_many(
        self, n: int, max_tokens: int = 256, *, seed: int | None = None, **options: Any
    ) -> list[Generation]:
        """Continue the text `n` times at the same time, each in a fork of its own, which shares what is there.

        This context stays as it is, but that what waits is run.  Draws, unless a temperature of 0 is given; `seed` + i
        draws continuation i.  Options are those of `generate`.  The generations, each at its end.
        """
        n = _convert.u32("n", n)
        if n > MOST_AT_ONCE:
            raise InvalidRequest(f"generate_many continues a text at most {MOST_AT_ONCE} times at once; given {n}")
        sampler = options.pop("sampler", None)
        if sampler is None:
            options.setdefault("temperature", 1.0)
        if self._chat.awaits_reply and self._marks[-1][0] == len(self._tokens):
            self.cue()
        await self.flush()

        async def one(number: int) -> Generation:
            own = None if seed is None else seed + number
            how = {"seed": own} if sampler is None else {"sampler": replace(sampler, seed=own)}
            async with self.fork() as fork:
                drawn = fork.generate(max_tokens, **options, **how)
                await drawn
                return drawn

        return list(await gather(*(one(number) for number in range(n))))

    async def collect_text(self, max_tokens: int = 256, **options: Unpack[Options]) -> str:
        """The text of `generate` with the same arguments."""
        return await self.generate(max_tokens, **options)

    async def think(self, max_tokens: int = 1024, **options: Unpack[Options]) -> str:
        """Let the model think before it answers: the thought, without its tags.  What comes next may be constrained.

        It begins a thought, unless the template has, and ends it where the model does or after `max_tokens`.  Options
        are those of `generate`.  Raises Unsupported if the model's chat template tells of no thoughts.
        """
        tags = models.info(self.model).get("thought_tags")
        if not tags:
            raise Unsupported("the chat template of this model tells of no thoughts")
        opening, closing = tags
        if self._chat.awaits_reply and self._marks[-1][0] == len(self._tokens):
            self.cue()
        if not models.detokenize(self._tokens[-16:], model=self.model).rstrip().endswith(opening):
            self.append(f"{opening}\n")
        generation = self.generate(max_tokens, **{**options, "stop": closing})
        thought = await generation
        by = generation.stopped_by
        if by is None or by not in (closing, models.special_token(closing, self.model)):
            if by is not None:  # the end of a turn, which is in the context
                self.truncate(len(self._tokens) - 1)
            self.append(f"\n{closing}\n\n")
        return thought.strip()

    @overload
    async def collect_json(self, type: type[T], max_tokens: int = 256, **options: Unpack[FreeOptions]) -> T: ...
    @overload
    async def collect_json(self, type: Any, max_tokens: int = 256, **options: Unpack[FreeOptions]) -> Any: ...
    async def collect_json(self, type: Any, max_tokens: int = 256, **options: Unpack[FreeOptions]) -> Any:
        """What the model writes next, as a value of a type or of a JSON schema: see `structured.collect_json`."""
        return await collect_json(self, type, max_tokens, **options)

    def forward(self, *, adapter: Adapter | None = None) -> Pass:
        """One pass over what waits, the last token included (that one again where nothing waits).

        Ask its rows for outputs, several if you like, await the pass itself, and its KV counts; then take the outputs
        (with the last of them the pass is closed).

            step = ctx.forward()
            drawn, nats = step.sample(), step.entropy()
            await step
            ctx.append(await drawn)

        Until it is awaited, or given up with `cancel`, the context runs nothing else.  `adapter`: LoRA for this pass.
        """
        sequence = self.sequence
        if adapter is not None:
            _convert.instance("adapter", adapter, Adapter)
        sequence.claim()
        waiting = self._pending()
        return ContextPass(sequence, sequence.forward(waiting, adapter=adapter), len(waiting))

    async def flush(self) -> None:
        """Run what waits, but for the last token."""
        waiting = self._tokens[self.sequence.kv_len : self.sequence.cut(max(len(self._tokens) - 1, 0))]
        if waiting:
            await self.sequence.prefill(waiting)

    async def distribution(self, k: int = 10) -> list[tuple[int, float]]:
        """The `k` most probable next tokens with their probabilities, by falling probability."""
        pending = self._pending()
        handle = self.sequence.forward(pending)
        try:
            ticket = _host.forward.distribution(handle, len(pending) - 1, k)
            await wait_ticket(ticket)
            tokens, probabilities = _host.tickets.take_distribution(ticket)
            self.sequence.commit(len(pending))
        finally:
            self.sequence.abandon(handle)
        return list(zip(tokens, probabilities, strict=True))

    async def logits(self) -> list[float]:
        """All logits of the next token.  Several contexts' share a step: `await gather(a.logits(), b.logits())`."""
        step = self.forward()
        asked = step.logits()
        await step
        return await asked

    async def hidden(self) -> list[float]:
        """The last hidden state of the last token, behind the final norm: the model's hidden size of floats."""
        step = self.forward()
        asked = step.hidden()
        await step
        return await asked

    async def logprobs(self, continuation: str | Sequence[int]) -> list[float]:
        """Log-probability of each token of `continuation` after this context, which stays as it is."""
        targets = self._tokens_of(continuation)
        await self.flush()
        return await self._scores(targets, None)

    async def _scores(self, targets: list[int], adapter: Adapter | None) -> list[float]:
        """`logprobs` through an adapter, of tokens, when all but the last has been run."""
        line, length = self._pending() + targets[:-1], len(self._tokens)
        scores: list[float] = []
        try:
            for start in range(0, len(targets), SCORE_ROWS):
                end = start + SCORE_ROWS
                scores += await self._score(line[start:end], targets[start:end], adapter)
        finally:
            self.sequence.truncate(length)
        return scores

    async def _score(self, line: list[int], targets: list[int], adapter: Adapter | None) -> list[float]:
        """Run `line`; the log-probability of targets[i] after row i."""
        sequence = self.sequence
        handle = sequence.forward(line, adapter=adapter)
        try:
            asked = [_host.forward.logprobs(handle, row, [target]) for row, target in enumerate(targets)]
            await wait_tickets(asked)
            scores = [float(_host.tickets.take_floats(ticket)[0]) for ticket in asked]
            sequence.commit(len(line))
        finally:
            sequence.abandon(handle)
        return scores

    # -- for generations

    async def _see(self, adapter: Adapter | None = None) -> None:
        """Run images that wait: what a plan, or a verification, begins with is text."""
        sequence = self.sequence
        if sequence.images and sequence.images[-1].end > sequence.kv_len:
            await sequence.prefill(self._tokens[sequence.kv_len : sequence.images[-1].end], adapter)

    def _pending(self) -> list[int]:
        """The tokens whose KV is not there yet: at least one, so that there is a row to sample from."""
        sequence = self.sequence
        if sequence.kv_len >= len(self._tokens):
            if not self._tokens:
                raise InvalidRequest("the context is empty: append something first")
            if sequence.cut(len(self._tokens) - 1) != len(self._tokens) - 1:
                raise InvalidRequest("the context ends with an image that is run: append text behind it first")
            sequence.rewind(len(self._tokens) - 1)
        return self._tokens[sequence.kv_len :]

    def _extend(self, token: int) -> None:
        """Take a sampled token in.  What runs ahead has written the KV of all before it."""
        if self.sequence.source is not None:
            self.sequence.kv_len = len(self._tokens)
        self._tokens.append(token)

    def _room_for(self, max_tokens: int) -> int:
        """How many of `max_tokens` the model's context still has room for."""
        most = models.info(self.model).get("max_context", 0)
        length = len(self._tokens)
        if most and length > most:
            raise InvalidRequest(f"the model's context is {most} tokens; this one has {length}")
        return min(max_tokens, most - length) if most else max_tokens


class ContextPass(Pass):
    """A pass of a context, whose KV counts once it is awaited."""

    __slots__ = ("_sequence",)

    def __init__(self, sequence: KvSequence, id: int, num_rows: int) -> None:
        super().__init__(id, num_rows)
        self._sequence = sequence

    def __await__(self) -> Generator[Any, None, None]:
        return self._finish().__await__()

    async def _finish(self) -> None:
        try:
            await self.arrive()
            self.take()
        finally:
            self._sequence.abandon(self.id)

    def take(self) -> None:
        """Take the KV in, without waiting.  Raises Pending if the pass has not run yet."""
        super().take()
        self._sequence.commit_pass(self.id, self.num_rows)

    def cancel(self) -> None:
        """Give the pass up: its KV does not count, and the context may run others."""
        self._sequence.abandon(self.id)
        super().cancel()

    def __del__(self) -> None:
        self._sequence.abandon(self.id)


async def ask(question: str, max_tokens: int = 256, **options: Unpack[Options]) -> str:
    """What the model replies to a user's message, in a context of its own; options are those of `generate`."""
    async with Context() as ctx:
        return await ctx.user(question).collect_text(max_tokens, **options)
