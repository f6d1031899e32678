"""Tools for chat templates that know of none (Gemma's, Llama 3's, DeepSeek R1's): told in text.

A template that does not read `tools` would drop them without a word.  In its place

* the tools and how to call them are told behind the system message, or before the first question where the template
  takes no system message;
* a reply's calls are shown as the text that they were, and what tools answer as the user's message, unless the template
  shows calls itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pieray.errors import InvalidRequest
from pieray.models.call_formats import Format, format_of
from pieray.models.chat import Message, reads_name, render_chat

EXAMPLE = [{"name": f"{which}_tool", "arguments": {"parameter": "value"}} for which in ("one", "another")]


def render_with_tools(
    template: str,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = True,
    names: Mapping[str, object] | None = None,
    now: int = 0,
) -> str:
    """`render_chat`, with the tools told in text where the template does not read them."""
    if tools and not reads_name(template, "tools"):
        messages = _told(template, messages, tools)
    return render_chat(
        template, messages, tools=tools, add_generation_prompt=add_generation_prompt, names=names, now=now
    )


def _told(template: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    way = format_of(template)
    found = list(messages) if "tool_calls" in template else _as_text(messages, way)
    text = instructions(way, tools)
    if _takes_system(template):
        first = found[0] if found and found[0].get("role") == "system" else None
        if first is not None:
            return [{**first, "content": _joined(first.get("content"), text)}, *found[1:]]
        return [{"role": "system", "content": text}, *found]
    place = next((at for at, one in enumerate(found) if one.get("role") == "user"), None)
    if place is None:
        raise InvalidRequest(
            "this model's chat template knows of no tools and takes no system message: the tools are "
            "told with the first question, and there is none yet"
        )
    asked = found[place]
    return [*found[:place], {**asked, "content": _joined(text, asked.get("content"))}, *found[place + 1 :]]


def instructions(way: Format, tools: Sequence[Mapping[str, Any]]) -> str:
    """What a model is told of its tools, one to a line as JSON, and of how to call them."""
    listed = "\n".join([json.dumps(tool, ensure_ascii=False) for tool in tools])
    return (
        f"You may call tools. These are they, with the JSON schemas of their parameters:\n{listed}\n\n"
        f"To call some, answer with nothing but the calls, written like this:\n{way.write(EXAMPLE)}\n\n"
        "What they answer comes next. If no tool is of use, answer as always."
    )


def _as_text(messages: Sequence[Message], way: Format) -> list[Message]:
    """Without calls and results: calls are their reply's text; results, and what the user says next, one message."""
    found: list[Message] = []
    has_results = False
    for message in messages:
        told = dict(message)
        if is_result := message.get("role") == "tool":
            told = {"role": "user", "content": f"<tool_response>\n{_text_of(message.get('content'))}\n</tool_response>"}
        elif calls := told.pop("tool_calls", None):
            told["content"] = _joined(message.get("content"), way.write([_call_of(call) for call in calls]), "\n")
        if has_results and told.get("role") == "user":
            told["content"] = _joined(found.pop()["content"], told["content"], "\n" if is_result else "\n\n")
        found.append(told)
        has_results = told.get("role") == "user" and (is_result or has_results)
    return found


def _call_of(call: Any) -> dict[str, Any]:
    """A call as `Format.write` takes it, from any of the shapes that messages have."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest("a message's tool_calls are {function: {name, arguments}}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    return {"name": function["name"], "arguments": arguments if isinstance(arguments, Mapping) else {}}


def _joined(first: Any, second: Any, between: str = "\n\n") -> Any:
    """Two contents, texts or lists of parts, as one."""
    if isinstance(first, list) or isinstance(second, list):
        parts = [one if isinstance(one, list) else [{"type": "text", "text": one or ""}] for one in (first, second)]
        return [*parts[0], {"type": "text", "text": between}, *parts[1]]
    return between.join([one for one in (first, second) if one])


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join([str(part.get("text", "")) for part in content if isinstance(part, Mapping)])
    return str(content if content is not None else "")


@lru_cache(maxsize=16)
def _takes_system(template: str) -> bool:
    """Whether the template shows a system message."""
    said, asked = "SAID0IN0IT", "ASKED0IN0IT"
    turns = [{"role": "system", "content": said}, {"role": "user", "content": asked}]
    try:
        text = render_chat(template, turns, names={"bos_token": "", "eos_token": ""})
    except InvalidRequest:
        return False
    return said in text and asked in text
