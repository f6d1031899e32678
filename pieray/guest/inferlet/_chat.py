"""The conversation of a context: what text the model's chat template adds for each message.

Templates rewrite what came before (thoughts go, tools move, dates are told), so that two renderings have no common
beginning to count on.  What is in the context stays as it is, and what is new is rendered from the last reply on: the
template is shown the conversation with a mark in that reply, and what stands behind the mark is the new text.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from . import _convert, chat
from . import model as models
from .errors import InvalidRequest, Unsupported

Message: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class Setting:
    """What a context's template is told besides messages, always the same."""

    model: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    date: int | None = None
    """Seconds since 1970: a conversation has one date, that of its first message."""

    @property
    def now(self) -> int:
        if self.date is None:
            self.date = int(time.time())
        return self.date

    def render(self, messages: tuple[Message, ...], *, cue: bool) -> str:
        return chat.render(
            messages,
            tools=self.tools,
            add_generation_prompt=cue,
            model=self.model,
            arguments=self.arguments,
            now=self.now,
        )

    def stops(self) -> list[str]:
        """Texts of the tokens that end a turn."""
        return [models.detokenize([token], model=self.model) for token in sorted(models.stop_tokens(self.model))]


@dataclass(frozen=True, slots=True)
class Chat:
    """The messages so far, and the text that those since the last reply have become."""

    messages: tuple[Message, ...] = ()
    num_before: int = 0
    """Messages up to the last reply, which is the last of them."""
    ended_by: str = ""
    """The stop token which that reply ends with."""
    calls: tuple[dict[str, Any], ...] = ()
    """Those of that reply, whose ids its results name."""
    told: Message | None = None
    """That reply as the template takes it."""
    start: int = 0
    """The token at which the text of the messages since begins."""
    end: int = 0
    """The token behind it."""
    said: str = ""
    """That text."""
    is_open: bool = False
    """The assistant's turn has begun: what stands behind `end` is its reply."""
    is_waiting: bool = False
    """The template does not take the last message without another one behind it."""

    @property
    def may_wait(self) -> bool:
        """Whether a template that refuses the last message may take it with the next one."""
        last = self.messages[-1]
        return last["role"] in ("system", "developer") or "tool_calls" in last

    @property
    def awaits_reply(self) -> bool:
        """The last message asks for the assistant's."""
        return len(self.messages) > self.num_before and not self.is_open and self.messages[-1]["role"] != "assistant"

    def replied(self, message: Message, calls: tuple[dict[str, Any], ...], ended_by: str, end: int) -> Chat:
        """The reply is over: it ends before token `end`."""
        messages = (*self.messages, message)
        if self.told is not None:
            messages = (*messages[: self.num_before - 1], self.told, *messages[self.num_before :])
        return Chat(messages, len(messages), ended_by, calls, start=end, end=end)

    def add(self, message: Message) -> Chat:
        """With one more message; a tool's is told the call that it answers."""
        return replace(self, messages=(*self.messages, self._answering(message)))

    def _answering(self, message: Message) -> Message:
        if message["role"] != "tool" or "tool_call_id" in message:
            return message
        given = [one.get("tool_call_id") for one in self.messages[self.num_before :]]
        left = [call for call in self.calls if call["id"] not in given]
        named = [call for call in left if call["name"] == message.get("name", call["name"])]
        if not named:
            return message
        return {"name": named[0]["name"], **message, "tool_call_id": named[0]["id"]}

    def text(self, setting: Setting, *, cue: bool) -> tuple[str, Chat]:
        """What the messages since the last reply are, with the beginning of the assistant's turn if `cue`; and the
        conversation, with that reply as the template takes it.

        Raises InvalidRequest if the template refuses them, Unsupported if they cannot be told from the rest.
        """
        if not self.num_before:
            return setting.render(self.messages, cue=cue), self
        before, reply = self.messages[: self.num_before - 1], self.messages[self.num_before - 1]
        after = self.messages[self.num_before :]
        mark = _mark_not_in(str(self.messages))
        refused: InvalidRequest | None = None
        for told, marked in _tellings(reply, mark):
            try:
                text = setting.render((*before, marked, *after), cue=cue)
            except InvalidRequest as error:
                refused = refused or error
                continue
            found = _behind(text, mark, setting.stops(), self.ended_by, is_call="tool_calls" in told)
            if found is not None:
                return found, replace(self, told=told)
        if refused is not None:
            raise refused
        raise Unsupported(
            "this model's chat template does not show earlier replies: render the whole conversation with chat.render "
            "into a new Context"
        )


def reply_of(text: str, model: str, number: int) -> tuple[Message, tuple[dict[str, Any], ...]]:
    """The assistant's message for the reply that is message `number`, and its calls, all with ids.

    An id has nine letters and digits, as Mistral's templates want it.
    """
    reply = chat.parse(text, model=model, is_over=True)
    calls = tuple(
        {"id": f"call{number % 1000:03d}{place % 100:02d}", **call} for place, call in enumerate(reply.tool_calls)
    )
    message: Message = {"role": "assistant", "content": reply.content}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if calls:
        message["tool_calls"] = [_as_openai(call) for call in calls]
    return message, calls


def _as_openai(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"id": call["id"], "type": "function", "function": function}


def _flat(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": call["id"], **call["function"]}


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": _convert.dump(function["arguments"])}}


SHAPES: tuple[Callable[[Mapping[str, Any]], dict[str, Any]], ...] = (dict, _flat, _with_text)
"""Of a call, as families of models want it: as OpenAI has it, without the function, with its arguments as text."""


def _tellings(reply: Message, mark: str) -> Iterator[tuple[Message, Message]]:
    """The reply, and the reply with the mark in it, in the ways that templates may take: the first that one takes is
    used.

    Calls stay calls, for the results behind them; of several some templates take one.
    """
    calls = reply.get("tool_calls", [])
    contents = (reply["content"],) if reply["content"] else (None, "")
    for some in [calls, calls[-1:]][: min(len(calls), 2)]:
        function = some[-1]["function"]
        last = {**some[-1], "function": {**function, "arguments": {**function["arguments"], "_": mark}}}
        for shape, content in itertools.product(SHAPES, contents):
            told = {**reply, "content": content, "tool_calls": [shape(call) for call in some]}
            yield told, {**told, "tool_calls": [*told["tool_calls"][:-1], shape(last)]}
    told = {name: value for name, value in reply.items() if name != "tool_calls"}
    yield told, {**told, "content": mark}


def _mark_not_in(text: str) -> str:
    return next(mark for number in itertools.count() if (mark := f"REPLY{number}ENDS") not in text)


def _behind(text: str, mark: str, stops: list[str], ended_by: str, *, is_call: bool) -> str | None:
    """What stands behind the reply with the mark, less the stop token that is in the context already."""
    _, found, rest = text.rpartition(mark)
    places = [(rest.index(stop), stop) for stop in stops if stop and stop in rest]
    place, stop = min(places) if places else (-1, "")
    if not found or (is_call and place < 0):
        return None
    if is_call or (place > 0 and not rest[:place].strip()):  # the call's closing was said with it
        rest = rest[place:]
    return rest.removeprefix(stop) if ended_by and stop else rest
