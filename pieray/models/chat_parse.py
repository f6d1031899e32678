"""Replies of chat models, taken apart: reasoning, content, calls of tools.

How a model writes calls is told from its chat template, which renders earlier calls that way.  No text is an error:

* A call counts once it has ended; later text never changes it.  Text that only begins a call or a thought (half a tag
  as well) is in neither `content` nor `tool_calls`, and the reply is not complete.
* A call that has ended but is none, for instance because its JSON is broken, stays in `content` as it was written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pieray.models.chat import render_chat

MAX_BLOCKS = 256
"""Calls, well-formed or not, in one reply: what follows the last is content."""

THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
_HALF_WORD = re.compile(r"-|\.|[eE][+-]?|t|tr|tru|f|fa|fal|fals|n|nu|nul")


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(number)
    return value


# models write line ends into strings as they are; NaN and infinities could not be handed on
_DECODER = json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=_finite)


@dataclass(slots=True)
class Reply:
    """`tool_calls`: {"name": str, "arguments": object}, in order."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    is_complete: bool = True

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__dataclass_fields__})


def parse_reply(template: str | None, text: str) -> Reply:
    """The parts of what a model with this chat template (None: without one) wrote."""
    known = _format_of(template)
    reply = Reply()
    if known.thought is not None:
        text = _take_thought(text, known, reply)
    if reply.is_complete:
        known.extract(text, reply)
        if reply.tool_calls or reply.reasoning or not reply.is_complete:
            reply.content = reply.content.strip()
    return reply


def format_name(template: str | None) -> str:
    """By which format replies are taken apart: "hermes", "mistral", "llama", "json" or "plain"."""
    return _format_of(template).name


@dataclass(frozen=True, slots=True)
class _Format:
    name: str
    extract: Callable[[str, Reply], None]
    thought: tuple[str, str] | None
    begins_thinking: bool
    """The template's generation prompt opens the thought."""


@lru_cache(maxsize=16)
def _format_of(template: str | None) -> _Format:
    text = (template or "").replace('\\"', '"')
    name, _, extract = next(entry for entry in FORMATS if entry[1](text))
    thought = next((tags for tags in THOUGHTS if tags[0] in text or tags[1] in text), None)
    return _Format(name, extract, thought, thought is not None and _begins_with(template or "", thought[0]))


def _begins_with(template: str, tag: str) -> bool:
    try:
        prompt = render_chat(template, [{"role": "user", "content": "a"}], bos_token="", eos_token="")
    except Exception:  # noqa: BLE001 - a template that refuses this question tells nothing
        return False
    return prompt.rstrip().endswith(tag)


def _take_thought(text: str, known: _Format, reply: Reply) -> str:
    """Move the thought that `text` begins with into the reply; what is behind it."""
    assert known.thought is not None
    opening, closing = known.thought
    rest = text.lstrip()
    if len(rest) > 1 and not rest.startswith(opening) and opening.startswith(rest):
        reply.is_complete = False
        return ""
    if not rest.startswith(opening) and not known.begins_thinking:
        return text
    thought, closed, behind = rest.removeprefix(opening).partition(closing)
    reply.is_complete = bool(closed)
    reply.reasoning = (thought if closed else _without_half_tag(thought, closing)[0]).strip()
    return behind


# -- formats


def _plain(text: str, reply: Reply) -> None:
    reply.content = text


def _hermes(text: str, reply: Reply) -> None:
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, among other text."""
    opening, closing = "<tool_call>", "</tool_call>"
    for _ in range(MAX_BLOCKS):
        before, opened, rest = text.partition(opening)
        if not opened:
            break
        reply.content += before
        value, end, is_open = _json_at(rest, _skip(rest, 0))
        is_closed = end > 0 and rest.startswith(closing, _skip(rest, end))
        call = _call_of(value) if is_closed else None
        is_open = is_open or (end > 0 and not is_closed and closing.startswith(rest[_skip(rest, end) :]))
        place = rest.find(closing, end)
        if is_open or (call is None and place < 0):
            reply.is_complete = False
            return
        text = rest[place + len(closing) :]
        _add(reply, call, opening + rest[: place + len(closing)])
    _end(reply, text, opening)


def _mistral(text: str, reply: Reply) -> None:
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or [TOOL_CALLS]name[ARGS]{...}, behind other text."""
    opening = "[TOOL_CALLS]"
    for _ in range(MAX_BLOCKS):
        before, opened, rest = text.partition(opening)
        if not opened:
            break
        reply.content += before
        start = _skip(rest, 0)
        text = _json_list(rest, start, reply) if rest[start : start + 1] in ("[", "") else _named(rest, start, reply)
        if not reply.is_complete:
            return
    _end(reply, text, opening)


def _json_list(text: str, start: int, reply: Reply) -> str:
    """Take the calls of a list, as far as they are whole; what is behind it."""
    place = start + 1
    while True:
        place = _skip(text, place, ",")
        if place >= len(text):
            reply.is_complete = False
            return ""
        if text[place] == "]":
            return text[place + 1 :]
        value, end, is_open = _json_at(text, place)
        call = _call_of(value)
        if is_open or call is None:
            reply.is_complete = not is_open
            reply.content += "" if is_open else text[place:]
            return ""
        reply.tool_calls.append(call)
        place = end


def _named(text: str, start: int, reply: Reply) -> str:
    name, divided, rest = text[start:].partition("[ARGS]")
    place = _skip(rest, 0)
    value, end, is_open = _json_at(rest, place)
    if not divided or is_open:
        reply.is_complete = False
        return ""
    call = _call_of({"name": name.strip(), "arguments": value})
    _add(reply, call, f"[TOOL_CALLS]{text[:start]}{name}[ARGS]")
    return rest if call is None else rest[end:]


def _llama(text: str, reply: Reply) -> None:
    """<|python_tag|>{"name": ..., "parameters": {...}}; ..., or the same without the tag."""
    tag = "<|python_tag|>"
    rest = text.lstrip()
    if len(rest) > 1 and tag.startswith(rest):
        reply.is_complete = False
        return
    _bare(rest.removeprefix(tag) if rest.startswith(tag) else text, reply)


def _bare(text: str, reply: Reply) -> None:
    """{"name": ..., "arguments": {...}} in place of content; several with blanks or ";" between them."""
    place = _skip(text, 0)
    for _ in range(MAX_BLOCKS):
        if text[place : place + 1] != "{":
            break
        value, end, is_open = _json_at(text, place)
        if is_open:
            reply.is_complete = False
            return
        if (call := _call_of(value)) is None:
            break
        reply.tool_calls.append(call)
        place = _skip(text, end, ";")
    reply.content += text[place:] if reply.tool_calls else text


FORMATS: tuple[tuple[str, Callable[[str], bool], Callable[[str, Reply], None]], ...] = (
    ("hermes", lambda template: "<tool_call>" in template, _hermes),
    ("mistral", lambda template: "[TOOL_CALLS]" in template, _mistral),
    ("llama", lambda template: "<|python_tag|>" in template or '"parameters": ' in template, _llama),
    ("json", lambda template: '{"name": "' in template and '"arguments": ' in template, _bare),
    ("plain", lambda _: True, _plain),
)
"""Name, whether a template tells of it, how calls are taken out.  The first that is told of is used."""

# -- pieces


def _call_of(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments, _, _ = _json_at(arguments, 0)
    return {"name": value["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def _json_at(text: str, start: int) -> tuple[Any, int, bool]:
    """The object at `start`, where it ends (0: there is none), and whether the text merely ends within it."""
    if start >= len(text):
        return None, 0, True
    if text[start] != "{":
        return None, 0, False
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        rest = text[error.pos :].strip()
        is_cut = not rest or _HALF_WORD.fullmatch(rest) is not None
        is_cut = is_cut or "Unterminated string" in error.msg or ("escape" in error.msg and len(rest) < 6)
        return None, 0, is_cut
    except (RecursionError, ValueError):  # too deep; a number of too many digits
        return None, 0, False
    return value, end, False


def _skip(text: str, place: int, also: str = "") -> int:
    while place < len(text) and (text[place].isspace() or text[place] in also):
        place += 1
    return place


def _add(reply: Reply, call: dict[str, Any] | None, written: str) -> None:
    if call is None:
        reply.content += written
    else:
        reply.tool_calls.append(call)


def _end(reply: Reply, text: str, opening: str) -> None:
    """The text behind the last call."""
    text, is_half = _without_half_tag(text, opening)
    reply.content += text
    reply.is_complete = not is_half


def _without_half_tag(text: str, tag: str) -> tuple[str, bool]:
    """The text without the beginning of `tag` (two characters at least) that it may end with, and whether it did."""
    for length in range(min(len(text), len(tag) - 1), 1, -1):
        if text.endswith(tag[:length]):
            return text[:-length], True
    return text, False
