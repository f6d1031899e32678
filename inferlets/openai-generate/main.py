"""What `pieray serve` runs for a request to /v1/chat/completions or /v1/completions.

The door has checked the JSON; what the model is to do is here.  Text of a single choice goes to the client as text, and
as a rule straight from the engine; all else as `delta` events.  The result has every choice whole.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from inferlet import (
    Context,
    Generation,
    Grammar,
    InvalidRequest,
    Sampler,
    Token,
    chat,
    gather,
    images,
    model,
    runtime,
    session,
)
from inferlet.embeds import Embedding

ROWS = 64
"""Rows of a prompt scored in one pass."""
PARSE_STEPS = 64
"""A reply is taken apart anew when it has grown by a 64th: in all that costs as its length, not as the square of it."""
ON_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Wish:
    """What each choice of the request is to be.  No dataclass: making one takes a guest longer than all else here."""

    def __init__(
        self,
        *,
        max_tokens: int | None,
        sampling: dict[str, Any],
        seed: int | None,
        stop: list[str],
        stop_token_ids: list[int],
        ignore_eos: bool,
        min_tokens: int,
        presence_penalty: float,
        frequency_penalty: float,
        grammar: Grammar | None,
        logprobs: int | None,
        echo: bool,
        stream: bool,
        is_alone: bool,
        parses: bool,
        forced: str,
        most_calls: int | None,
        shows_reasoning: bool,
        shows_ids: bool,
    ) -> None:
        """`is_alone`: there is one choice, and its text needs no number.  `parses`: the reply may have thoughts, or
        calls of tools in the model's own format.  `forced`: the tool that the reply calls, "*": any; `grammar` is that
        of its calls."""
        self.max_tokens = max_tokens
        self.sampling = sampling
        self.seed = seed
        self.stop = stop
        self.stop_token_ids = stop_token_ids
        self.ignore_eos = ignore_eos
        self.min_tokens = min_tokens
        self.presence_penalty = presence_penalty
        self.frequency_penalty = frequency_penalty
        self.grammar = grammar
        self.logprobs = logprobs
        self.echo = echo
        self.stream = stream
        self.is_alone = is_alone
        self.parses = parses
        self.forced = forced
        self.most_calls = most_calls
        self.shows_reasoning = shows_reasoning
        self.shows_ids = shows_ids
        self.has_detail = logprobs is not None or shows_ids


async def main(
    messages: list[dict[str, Any]] | None = None,
    prompts: list[str | list[int]] | None = None,
    tools: list[dict[str, Any]] | None = None,
    tool_choice: str = "auto",
    parallel_tool_calls: bool = True,
    template: dict[str, Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    add_special_tokens: bool | None = None,
    truncate_prompt_tokens: int | None = None,
    truncation_side: str = "left",
    n: int = 1,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int | None = None,
    logit_bias: dict[str, float] | None = None,
    allowed_token_ids: list[int] | None = None,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    min_tokens: int = 0,
    stop: list[str] | None = None,
    stop_token_ids: list[int] | None = None,
    ignore_eos: bool = False,
    grammar: dict[str, str] | None = None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    echo: bool = False,
    include_reasoning: bool = True,
    return_token_ids: bool = False,
    stream: bool = False,
) -> dict[str, Any]:
    """Either `messages` or `prompts` (texts or token ids).  `tool_choice`: none, auto, required, or a tool's name;
    `grammar`: {kind, text}; `logprobs`: how many alternatives beside each token's own, None: no log-probabilities."""
    is_chat = messages is not None
    forced = {"none": "", "auto": "", "required": "*"}.get(tool_choice, tool_choice) if tools else ""
    offered = [] if tool_choice == "none" else tools or []
    wish = Wish(
        max_tokens=max_tokens,
        sampling={
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "logit_bias": {int(token): bias for token, bias in (logit_bias or {}).items()},
            "allowed": allowed_token_ids,
        },
        seed=seed,
        stop=stop or [],
        stop_token_ids=stop_token_ids or [],
        ignore_eos=ignore_eos,
        min_tokens=min_tokens,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        grammar=calls_of(offered, forced, parallel_tool_calls)
        if forced
        else Grammar(grammar["kind"], grammar["text"])
        if grammar
        else None,
        logprobs=logprobs,
        echo=echo,
        stream=stream,
        is_alone=n == 1 and len(prompts or [""]) == 1,
        parses=is_chat and not forced and bool(offered or model.info().get("thought_tags")),
        forced=forced,
        most_calls=None if parallel_tool_calls else 1,
        shows_reasoning=include_reasoning,
        shows_ids=return_token_ids,
    )
    photos: list[Embedding] = []
    if messages is not None:
        messages, photos = await seen(messages)
        text = rendered(messages, offered, template, add_generation_prompt, continue_final_message)
        lines = [tokens_of(text, bool(add_special_tokens))]
    else:
        lines = [tokens_of(prompt, add_special_tokens is not False) for prompt in prompts or []]
    if truncate_prompt_tokens is not None:
        lines = [cut(line, truncate_prompt_tokens, truncation_side) for line in lines]
    num_rows = sum(len(photo) - 1 for photo in photos)  # beside the token that stands for each
    if photos and (prompt_logprobs is not None or echo or truncate_prompt_tokens is not None):
        raise InvalidRequest("prompt_logprobs, echo and truncate_prompt_tokens are of texts: there are images here")
    for line in lines:
        check_room(line, max_tokens, num_rows)
    answered = await gather(*(answer(wish, line, photos, n, at * n, prompt_logprobs) for at, line in enumerate(lines)))
    choices = [choice for found, _ in answered for choice in found]
    return {
        "choices": choices,
        "prompt_logprobs": [scores for _, scores in answered] if prompt_logprobs is not None else None,
        "prompt_token_ids": lines if return_token_ids else None,
        "usage": {
            "prompt_tokens": sum(map(len, lines)) + num_rows,
            "completion_tokens": sum(choice.pop("num_tokens") for choice in choices),
            "reasoning_tokens": sum(len(model.tokenize(choice["reasoning"])) for choice in choices),
            "cached_tokens": min(runtime.usage()["tokens_found"], sum(map(len, lines)) + num_rows),
        },
    }


# -- prompts


def rendered(
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    template: dict[str, Any] | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
) -> str:
    """The conversation as the model's template writes it; `continue_final_message`: up to where its last message
    breaks off."""
    text = chat.render(
        messages,
        tools=tools,
        arguments=template,
        add_generation_prompt=add_generation_prompt and not continue_final_message,
    )
    if not continue_final_message:
        return text
    last = messages[-1].get("content")
    said = last if isinstance(last, str) else "".join(part["text"] for part in last or [])
    place = text.rfind(said.strip())
    if not said.strip() or place < 0:
        raise InvalidRequest("continue_final_message: the last message has no text, or the template does not show it")
    return text[: place + len(said.strip())]


async def seen(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Embedding]]:
    """The messages as a chat template takes them, and their images, in order."""
    if not any(isinstance(message.get("content"), list) for message in messages):
        return messages, []
    told, photos = [], []
    for message in await images.seen(messages):
        content, found = images.told(message.get("content"))
        told.append({**message, "content": content})
        photos += found
    return told, photos


def tokens_of(prompt: str | list[int], has_bos: bool) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    tokens, bos = model.tokenize(prompt), model.info().get("bos_tokens", [])
    return tokens if not has_bos or tokens[: len(bos)] == bos else [*bos, *tokens]


def cut(line: list[int], length: int, side: str) -> list[int]:
    """-1: as much as the model's context has."""
    most = model.info()["max_context"] - 1 if length == -1 else length
    return line if len(line) <= most else line[:most] if side == "right" else line[len(line) - most :]


def check_room(line: list[int], max_tokens: int | None, num_rows: int = 0) -> None:
    if not line:
        raise InvalidRequest("the prompt is empty: there is nothing to continue")
    most = model.info()["max_context"]
    if len(line) + num_rows + (1 if max_tokens is None else max_tokens) > most:
        asked = "" if max_tokens is None else f", and {max_tokens} more are asked for (max_tokens)"
        raise InvalidRequest(f"the model's context is {most} tokens; the prompt has {len(line) + num_rows}{asked}")


# -- choices


async def answer(
    wish: Wish, line: list[int], photos: list[Embedding], n: int, first: int, prompt_logprobs: int | None
) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """`n` choices behind one prompt, whose KV they share, numbered from `first`; and the prompt's own scores."""
    wanted = prompt_logprobs if prompt_logprobs is not None else wish.logprobs if wish.echo else None
    scores = None if wanted is None else await scored(line, wanted)
    async with Context() as ctx:
        ctx.append(line, photos)
        if n == 1:
            choices = [await choose(wish, ctx, first, scores)]
        else:
            await ctx.flush()
            forks = [ctx.fork() for _ in range(n)]
            choices = list(await gather(*(choose(wish, one, first + i, scores) for i, one in enumerate(forks))))
            for fork in forks:
                fork.close()
    told = None if scores is None or prompt_logprobs is None else [ranked(*one) for one in scores]
    return choices, told


async def choose(wish: Wish, ctx: Context, index: int, scores: list[Any] | None) -> dict[str, Any]:
    """One choice: its text, or message, and how it ended."""
    out = Out(wish, index)
    if wish.echo:
        entries = [entry(*one) for one in scores] if scores is not None and wish.logprobs is not None else []
        out.tell(content=model.detokenize(ctx.tokens, skip_special=True), logprobs=entries, ids=ctx.tokens)
    if wish.max_tokens == 0:
        return out.choice("length", None, 0)
    generation = begin(wish, ctx, index)
    if wish.stream and wish.is_alone and not (wish.has_detail or wish.parses or wish.forced):
        out.content += await session.stream(generation)
    elif wish.stream or wish.has_detail:
        await follow(wish, ctx, generation, out)
    else:
        text = await generation
        out.content += "" if wish.parses or wish.forced else text
    if wish.parses or wish.forced:
        out.finish(generation)
    stopped_by = generation.stopped_by
    reason = "length" if generation.finish_reason == "length" else "stop"
    said_why = stopped_by if isinstance(stopped_by, str) or stopped_by in wish.stop_token_ids else None
    num_tokens = generation.num_tokens + isinstance(stopped_by, int)
    return out.choice("tool_calls" if out.calls and reason == "stop" else reason, said_why, num_tokens)


def begin(wish: Wish, ctx: Context, index: int) -> Generation:
    """Penalties, and stop tokens kept out until there are `min_tokens`, are a bias that follows the tokens drawn."""
    counts: Counter[int] = Counter()
    base: dict[int, float] = wish.sampling["logit_bias"]
    seed = None if wish.seed is None else (wish.seed + index) % (1 << 64)
    stops = {*model.stop_tokens(), *wish.stop_token_ids}

    def sampler() -> Sampler:
        bias = dict(base)
        for token, count in counts.items():
            bias[token] = bias.get(token, 0.0) - wish.presence_penalty - wish.frequency_penalty * count
        if counts.total() < wish.min_tokens:
            bias |= dict.fromkeys(stops, -math.inf)
        return Sampler(**{**wish.sampling, "logit_bias": bias}, seed=seed)

    def penalize(token: Token) -> Sampler | None:
        counts[token.id] += 1
        is_due = wish.presence_penalty or wish.frequency_penalty or counts.total() == wish.min_tokens
        return sampler() if is_due else None

    follows = wish.presence_penalty or wish.frequency_penalty or wish.min_tokens
    return ctx.generate(
        model.info()["max_context"] - ctx.position if wish.max_tokens is None else wish.max_tokens,
        sampler=sampler(),
        stop=[*wish.stop, *wish.stop_token_ids],
        stop_tokens=() if wish.ignore_eos else None,
        logprobs=wish.logprobs is not None,
        schema=wish.grammar,
        on_token=penalize if follows else None,
    )


async def follow(wish: Wish, ctx: Context, generation: Generation, out: Out) -> None:
    """Take the tokens one by one, and tell of each.  Alternatives come from a second context that reads along."""
    shadow = None
    if wish.logprobs:
        await ctx.flush()
        shadow = ctx.fork()
    try:
        async for token in generation:
            is_stop = generation.stopped_by == token.id
            entries = []
            if wish.logprobs is not None and not is_stop:
                top = [] if shadow is None else await alternatives(shadow, wish.logprobs, token.id)
                entries = [entry(token.id, token.logprob, top)]
            out.tell(content=token.text, logprobs=entries, ids=[] if is_stop else [token.id])
    finally:
        if shadow is not None:
            shadow.close()


async def alternatives(shadow: Context, k: int, token: int) -> list[tuple[int, float]]:
    """The `k` most probable tokens where the shadow stands, with log-probabilities; then it takes the token in."""
    found = await shadow.distribution(k)
    shadow.append([token])
    return [(one, log(probability)) for one, probability in found]


class Out:
    """One choice as it grows, and what its client has been told of it."""

    def __init__(self, wish: Wish, index: int) -> None:
        self.wish = wish
        self.index = index
        self.content = ""
        self.reasoning = ""
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []
        self.ids: list[int] = []
        self.raw: Raw | None = None
        self.num_parsed = 0
        """Characters of the reply when it was last taken apart."""

    def tell(self, *, content: str = "", logprobs: Sequence[dict[str, Any]] = (), ids: Sequence[int] = ()) -> None:
        """Text that has come, unless it is to be parsed, and what is known of its tokens."""
        wish, delta = self.wish, {}
        self.logprobs += logprobs
        self.ids += ids
        if wish.parses:
            self.raw = self.raw or Raw(wish.stop)
            text = self.raw.with_tokens(ids)
            if len(text) > self.num_parsed + self.num_parsed // PARSE_STEPS:
                self.num_parsed = len(text)
                delta = self._parsed(text, is_over=False)
        elif not wish.forced:
            self.content += content
            delta = {"content": content} if content else {}
        if logprobs:
            delta["logprobs"] = list(logprobs)
        if ids and wish.shows_ids:
            delta["token_ids"] = list(ids)
        self.send(delta)

    def send(self, delta: dict[str, Any]) -> None:
        if not self.wish.stream or not delta:
            return
        if self.wish.is_alone and delta.keys() == {"content"}:
            session.send(delta["content"])
        else:
            session.emit("delta", {"index": self.index, **delta})

    def finish(self, generation: Generation) -> None:
        """Take the whole reply apart, and tell what has not been told."""
        is_over = generation.finish_reason != "length"
        if self.wish.forced:
            calls = forced_calls(generation.text, self.wish.forced) if is_over else None
            if calls is None:  # what there is of it
                self.content = generation.text
                self.send({"content": self.content})
            self.calls = (calls or [])[: self.wish.most_calls]
        else:
            text = model.detokenize(generation.tokens)
            if isinstance(generation.stopped_by, str):
                text = text.partition(generation.stopped_by)[0]
            self.send(self._parsed(text, is_over=is_over, is_last=True))
        self.send({"tool_calls": self.calls} if self.calls else {})

    def _parsed(self, text: str, *, is_over: bool, is_last: bool = False) -> dict[str, Any]:
        """What a reply has more of than has been told; calls are kept for the end."""
        reply, delta = chat.parse(text, is_over=is_over), {}
        self.content, delta["content"] = grown(self.content, reply.content, is_last)
        if self.wish.shows_reasoning:
            self.reasoning, delta["reasoning"] = grown(self.reasoning, reply.reasoning, is_last)
        if is_last:
            self.calls = [as_openai(call) for call in reply.tool_calls[: self.wish.most_calls]]
        return {name: more for name, more in delta.items() if more}

    def choice(self, reason: str, stop_reason: int | str | None, num_tokens: int) -> dict[str, Any]:
        return {
            "index": self.index,
            "content": self.content,
            "reasoning": self.reasoning,
            "tool_calls": self.calls,
            "logprobs": self.logprobs if self.wish.logprobs is not None else None,
            "token_ids": self.ids if self.wish.shows_ids else None,
            "finish_reason": reason,
            "stop_reason": stop_reason,
            "num_tokens": num_tokens,
        }


def grown(told: str, whole: str, is_last: bool) -> tuple[str, str]:
    """What has been told of a part of a reply that is `whole` so far, and what is to be told now.

    Blanks at its end may turn out to belong to a tag behind it, and a bracket there to begin one.
    """
    sure = whole
    if not is_last:
        sure = whole.rstrip()
        if sure.endswith(("<", "[", "{")):
            sure = sure[:-1].rstrip()
    if sure.startswith(told):
        return sure, sure[len(told) :]
    return (whole, "") if is_last else (told, "")


class Raw:
    """A reply with its special tokens, less the end in which a stop text may have begun, and what is behind one."""

    def __init__(self, stops: list[str]) -> None:
        self._stream = model.TextStream(skip_special=False)
        self._stops = stops
        self._num_held = max(map(len, stops), default=0)
        self._text = ""

    def with_tokens(self, tokens: Sequence[int]) -> str:
        self._text += self._stream.push(list(tokens))
        ends = [
            len(self._text) - self._num_held,
            *(self._text.find(stop) for stop in self._stops if stop in self._text),
        ]
        return self._text[: max(min(ends), 0)]


# -- tools that must be called


def calls_of(tools: list[dict[str, Any]], forced: str, many: bool) -> Grammar:
    """JSON of the calls: of one tool its arguments, else a list of {name, arguments}."""
    functions = [one["function"] for one in tools if forced in ("*", one["function"]["name"])]
    if not functions:
        names = ", ".join(one["function"]["name"] for one in tools)
        raise InvalidRequest(f"tool_choice names {forced!r}; the tools are: {names}")
    if forced != "*":
        return Grammar.json_schema(parameters_of(functions[0]) | {"x-guidance": ON_ONE_LINE})
    items = [
        {
            "type": "object",
            "properties": {"name": {"const": one["name"]}, "arguments": parameters_of(one)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for one in functions
    ]
    schema = {"type": "array", "minItems": 1, "items": {"anyOf": items}, "x-guidance": ON_ONE_LINE}
    return Grammar.json_schema(schema if many else schema | {"maxItems": 1})


def parameters_of(function: dict[str, Any]) -> dict[str, Any]:
    """Its schema; what it does not name is no parameter, unless it says otherwise."""
    return {"additionalProperties": False, **(function.get("parameters") or {"type": "object", "properties": {}})}


def forced_calls(text: str, forced: str) -> list[dict[str, Any]] | None:
    """None: a stop text has cut them off."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return [as_openai(call) for call in (value if forced == "*" else [{"name": forced, "arguments": value}])]


def as_openai(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    number = call.get("id") or f"call_{runtime.random_u64():016x}"
    return {"id": number, "type": "function", "function": {"name": call["name"], "arguments": text}}


# -- log-probabilities


async def scored(line: list[int], k: int) -> list[Any]:
    """Of each token of a prompt its id, its log-probability after those before it (None of the first), and the `k`
    most probable in its place."""
    scores: list[Any] = [(line[0], None, [])]
    async with Context(line[:1], reuse=False) as ctx:
        for start in range(1, len(line), ROWS):
            targets = line[start : start + ROWS]
            step = ctx.append(targets[:-1]).forward()
            asked = [
                (step.logprobs([target], row), step.distribution(k, row) if k else None)
                for row, target in enumerate(targets)
            ]
            await step
            for target, (own, spread) in zip(targets, asked, strict=True):
                top = [] if spread is None else list(zip(*await spread, strict=True))
                scores.append((target, (await own)[0], [(one, log(probability)) for one, probability in top]))
            ctx.append(targets[-1:])
    return scores


def entry(token: int, logprob: float | None, top: list[tuple[int, float]]) -> dict[str, Any]:
    """`token`: its id; of those before the first, nothing is known."""
    return {
        "id": token,
        "token": model.detokenize([token]),
        "logprob": finite(logprob),
        "top": [{"id": one, "token": model.detokenize([one]), "logprob": finite(score)} for one, score in top],
    }


def ranked(token: int, logprob: float | None, top: list[tuple[int, float]]) -> dict[str, Any] | None:
    """As vLLM tells the scores of a prompt; the rank of a token that is not among the most probable is not known."""
    if logprob is None:
        return None
    found = {one: (score, rank) for rank, (one, score) in enumerate(top, 1)}
    found.setdefault(token, (logprob, None))
    return {
        str(one): {"logprob": finite(score), "rank": rank, "decoded_token": model.detokenize([one])}
        for one, (score, rank) in found.items()
    }


def log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def finite(logprob: float | None) -> float | None:
    """JSON has no -inf: OpenAI writes -9999."""
    return logprob if logprob is None else max(logprob, -9999.0)
