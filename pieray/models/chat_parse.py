"""Replies of chat models, taken apart: reasoning, content, calls of tools.

How a model writes calls is told from its chat template, which renders earlier calls that way.  No text is an error:

* A call counts once it has ended; later text never changes it.  Text that only begins a call or a thought (half a tag
  as well) is in neither `content` nor `tool_calls`, and the reply is not complete.
* A call that has ended but is none, for instance because its JSON is broken, stays in `content` as it was written.
* Of a reply that is over, a call whose closing tag is missing counts too, and half a tag is content.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

from pieray.models.chat import render_chat
from pieray.models.python_calls import python_calls

MAX_BLOCKS = 256
"""Calls, well-formed or not, in one reply: what follows the last is content."""

THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
_HALF_WORD = re.compile(r"-|\.|[eE][+-]?|t|tr|tru|f|fa|fal|fals|n|nu|nul")
_ARGUMENTS = ("arguments", "parameters")
_IN_BLOCK = frozenset(("name", "id", "type"))
"""Keys of a call without arguments, where tags say that it is one."""


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(number)
    return value


# models write line ends into strings as they are; NaN and infinities could not be handed on
_DECODER = json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=_finite)


@dataclass(slots=True)
class Reply:
    """`tool_calls`: {"name": str, "arguments": object}, with "id" if the model gives one, in order."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    is_complete: bool = True

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__dataclass_fields__})


def parse_reply(template: str | None, text: str, *, is_over: bool = False) -> Reply:
    """The parts of what a model with this chat template (None: without one) wrote; `is_over`: no more comes."""
    known = _format_of(template)
    reply = Reply()
    if known.thought is not None:
        text = _take_thought(text, known, reply, is_over=is_over)
    if reply.is_complete:
        known.extract(text, reply, is_over)
        if reply.tool_calls or reply.reasoning or not reply.is_complete:
            reply.content = reply.content.strip()
    return reply


def format_name(template: str | None) -> str:
    """By which format replies are taken apart: "coder", "hermes", "mistral", "llama", "python", "json" or "plain"."""
    return _format_of(template).name


Extract: TypeAlias = Callable[[str, Reply, bool], None]
"""Takes the text of a reply, which it fills, and whether it is over."""


def thought_tags(template: str | None) -> tuple[str, str] | None:
    """What begins and ends a thought of a model with this chat template, if it has any."""
    return _format_of(template).thought


@dataclass(frozen=True, slots=True)
class _Format:
    name: str
    extract: Extract
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
        prompt = render_chat(template, [{"role": "user", "content": "a"}], names={"bos_token": "", "eos_token": ""})
    except Exception:  # noqa: BLE001 - a template that refuses this question tells nothing
        return False
    return prompt.rstrip().endswith(tag)


def _take_thought(text: str, known: _Format, reply: Reply, *, is_over: bool) -> str:
    """Move the thought that `text` begins with into the reply; what is behind it."""
    assert known.thought is not None
    opening, closing = known.thought
    rest = text.lstrip()
    if not is_over and len(rest) > 1 and not rest.startswith(opening) and opening.startswith(rest):
        reply.is_complete = False
        return ""
    is_opened = rest.startswith(opening)
    if not is_opened and not known.begins_thinking and closing not in rest:
        return text
    thought, closed, behind = rest.removeprefix(opening).partition(closing)
    reply.is_complete = bool(closed)
    reply.reasoning = (thought if closed or is_over else _without_half_tag(thought, closing)[0]).strip()
    return behind


# -- formats


def _plain(text: str, reply: Reply, is_over: bool) -> None:  # noqa: ARG001 - as all formats
    reply.content = text


def _hermes(text: str, reply: Reply, is_over: bool) -> None:
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, among other text; several or a list in one block."""
    opening, closing = "<tool_call>", "</tool_call>"
    for _ in range(MAX_BLOCKS):
        before, opened, rest = text.partition(opening)
        if not opened:
            break
        reply.content += before
        found = _objects(rest, 0)
        end = _skip(rest, found.end)
        calls = [_call_of(value, keys=_IN_BLOCK) for value in found.values]
        is_whole = bool(calls) and None not in calls and not found.is_open
        if is_whole and rest.startswith(closing, end):
            reply.tool_calls += calls  # type: ignore[arg-type]
            text = rest[end + len(closing) :]
        elif is_whole and (rest.startswith(opening, end) or (is_over and closing.startswith(rest[end:]))):
            reply.tool_calls += calls  # type: ignore[arg-type]
            text = rest[end:].removeprefix(closing[: len(rest) - end]) if is_over else rest[end:]
        else:
            is_cut = found.is_open or (is_whole and closing.startswith(rest[end:]))
            place = -1 if is_cut else rest.find(closing, found.end)
            if place < 0:
                reply.is_complete = False
                return
            text = rest[place + len(closing) :]
            reply.content += opening + rest[: place + len(closing)]
    _end(reply, text, (opening,), is_over)


def _coder(text: str, reply: Reply, is_over: bool) -> None:
    """<tool_call><function=name><parameter=key>value</parameter>...</function></tool_call>; values are texts."""
    opening, closing = "<function=", "</function>"
    for _ in range(MAX_BLOCKS):
        before, opened, rest = text.partition(opening)
        if not opened:
            break
        stripped = before.rstrip()
        reply.content += stripped.removesuffix("<tool_call>") if stripped.endswith("<tool_call>") else before
        body, closed, behind = rest.partition(closing)
        call = _function_of(body)
        if not closed and not (is_over and call is not None and body.rstrip().endswith((">", "</parameter>"))):
            reply.is_complete = False
            return
        _add(reply, call, opening + body + closed)
        text = behind[_skip(behind, 0) :].removeprefix("</tool_call>") if call is not None else behind
        if not is_over and text and "</tool_call>".startswith(text):
            text = ""
    _end(reply, text, ("<tool_call>", opening), is_over)


_PARAMETER = re.compile(r"<parameter=([^>]*)>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)


def _function_of(body: str) -> dict[str, Any] | None:
    name, divided, written = body.partition(">")
    arguments = {
        key.strip(): value.removeprefix("\n").removesuffix("\n") for key, value in _PARAMETER.findall(written)
    }
    return {"name": name.strip(), "arguments": arguments} if divided and name.strip() else None


_NAMED = re.compile(r"\s*([^\[\]{}]+?)\s*(?:\[CALL_ID\]\s*([^\[{]*?)\s*)?(?:\[ARGS\]\s*)?(?=\{)")


def _mistral(text: str, reply: Reply, is_over: bool) -> None:
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or [TOOL_CALLS]name[CALL_ID]id[ARGS]{...}, behind other
    text; the id and the words before it may be missing."""
    opening = "[TOOL_CALLS]"
    for _ in range(MAX_BLOCKS):
        before, opened, rest = text.partition(opening)
        if not opened:
            break
        reply.content += before
        start = _skip(rest, 0)
        if rest[start : start + 1] in ("[", "{"):
            text = _json_list(rest, start, reply)
        elif (named := _NAMED.match(rest)) is not None:
            text = _named(rest, named, reply)
        elif is_over or "{" in rest:
            text = rest
            reply.content += opening
        else:
            reply.is_complete = False
        if not reply.is_complete:
            return
    _end(reply, text, (opening,), is_over)


def _json_list(text: str, start: int, reply: Reply) -> str:
    """Take the calls of a list, or the one without a list, as far as they are whole; what is behind."""
    is_list = text[start] == "["
    place = start + is_list
    while True:
        place = _skip(text, place, ",")
        if is_list and place >= len(text):
            reply.is_complete = False
            return ""
        if is_list and text[place] == "]":
            return text[place + 1 :]
        value, end, is_open = _json_at(text, place)
        call = _call_of(value, keys=_IN_BLOCK)
        if is_open or call is None:
            reply.is_complete = not is_open
            reply.content += "" if is_open else text[place:]
            return ""
        reply.tool_calls.append(call)
        if not is_list:
            return text[end:]
        place = end


def _named(text: str, named: re.Match[str], reply: Reply) -> str:
    value, end, is_open = _json_at(text, named.end())
    if is_open:
        reply.is_complete = False
        return ""
    call = _call_of({"name": named[1], "arguments": value})
    if call is not None and named[2]:
        call["id"] = named[2]
    _add(reply, call, "[TOOL_CALLS]" + text[: named.end()])
    return text[named.end() :] if call is None else text[end:]


def _llama(text: str, reply: Reply, is_over: bool) -> None:
    """<|python_tag|>{"name": ..., "parameters": {...}}; ... or calls in Python's syntax, behind other text; the same
    without the tag from the beginning of a line on."""
    tag = "<|python_tag|>"
    before, tagged, rest = text.partition(tag)
    if not tagged:
        text, is_half = (text, False) if is_over else _without_half_tag(text, tag)
        _bare(text, reply, is_over)
        reply.is_complete = reply.is_complete and not is_half
        return
    reply.content += before
    for part in rest.split(tag):
        _bare(part, reply, is_over, is_tagged=True)


def _bare(text: str, reply: Reply, is_over: bool, *, is_tagged: bool = False) -> None:
    """{"name": ..., "arguments": {...}} or [f(x=1), ...] at the beginning of a line; several with blanks or ";" between
    them."""
    said, last = "", 0
    place = _skip(text, 0) if is_tagged else _next_bracket(text, 0)
    for _ in range(MAX_BLOCKS):
        if not 0 <= place < len(text):
            break
        calls, end, is_open = _calls_at(text, place)
        if is_open and not is_over:
            reply.content += said + _between(text[last:place])
            reply.is_complete = False
            return
        if calls:
            said += _between(text[last:place])
            reply.tool_calls += calls
            last = end
        place = _next_bracket(text, end if calls else place + 1)
    reply.content += said + _between(text[last:]) if reply.tool_calls else text


def _between(text: str) -> str:
    """What stands between two calls, if it is more than blanks and semicolons."""
    return text if text.strip(" \n\r\t;") else ""


_BRACKET = re.compile(r"^[ \t]*(?=[{\[])", re.MULTILINE)


def _next_bracket(text: str, place: int) -> int:
    """Where a call may begin from `place` on: here, behind blanks and semicolons, or with a later line; -1: nowhere."""
    here = _skip(text, place, ";")
    if text[here : here + 1] in ("{", "[") and (place == 0 or text[place - 1 : place] in ("}", "]", ")")):
        return here
    found = _BRACKET.search(text, place)
    return found.end() if found else -1


def _calls_at(text: str, place: int) -> tuple[list[dict[str, Any]], int, bool]:
    """Calls that are written at `place`, where they end, and whether the text merely ends within them."""
    if text[place : place + 1] == "{":
        value, end, is_open = _json_at(text, place)
        call = _call_of(value)
        return [call] if call else [], end, is_open
    found = _objects(text, place)
    calls = [call for value in found.values if (call := _call_of(value))]
    if calls and not found.is_open and len(calls) == len(found.values):
        return calls, found.end, False
    return python_calls(text, place)


FORMATS: tuple[tuple[str, Callable[[str], bool], Extract], ...] = (
    ("coder", lambda template: "<function=" in template, _coder),
    ("hermes", lambda template: "<tool_call>" in template, _hermes),
    ("mistral", lambda template: "[TOOL_CALLS]" in template, _mistral),
    ("llama", lambda template: "<|python_tag|>" in template or '"parameters": ' in template, _llama),
    ("python", lambda template: "func_name1(" in template or "python list" in template, _llama),
    ("json", lambda template: '{"name": "' in template and '"arguments": ' in template, _bare),
    ("plain", lambda _: True, _plain),
)
"""Name, whether a template tells of it, how calls are taken out.  The first that is told of is used."""

# -- pieces


def _call_of(value: Any, keys: frozenset[str] = frozenset()) -> dict[str, Any] | None:
    """A call from its JSON; without arguments it is one if it has no other keys than these."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {**value["function"], **({"id": value["id"]} if "id" in value else {})}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    if not any(key in value for key in _ARGUMENTS) and not (keys and keys.issuperset(value)):
        return None
    arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    if isinstance(arguments, str):
        arguments, _, _ = _json_at(arguments, _skip(arguments, 0))
    if not isinstance(arguments, dict):
        return None
    has_id = isinstance(value.get("id"), str) and value["id"]
    return {"name": value["name"], "arguments": arguments, **({"id": value["id"]} if has_id else {})}


@dataclass(frozen=True, slots=True)
class _Found:
    values: list[Any]
    end: int
    is_open: bool
    """The text merely ends within them."""


def _objects(text: str, start: int) -> _Found:
    """The objects at `start`, one after the other or in a list; no values: there is none, or one is broken."""
    place = _skip(text, start)
    is_list = text[place : place + 1] == "["
    values: list[Any] = []
    end, place = 0, place + is_list
    while len(values) < MAX_BLOCKS:
        place = _skip(text, place, ",;" if values else "")
        if is_list and text[place : place + 1] == "]":
            return _Found(values, place + 1, False)
        if place >= len(text):
            return _Found(values, end, is_list or not values)
        if text[place] != "{":
            return _Found([], 0, False) if is_list or not values else _Found(values, end, False)
        value, end, is_open = _json_at(text, place)
        if value is None:
            return _Found([], 0, is_open)
        values.append(value)
        place = end
    return _Found([], 0, False)


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


def _end(reply: Reply, text: str, openings: tuple[str, ...], is_over: bool) -> None:
    """The text behind the last call."""
    for opening in () if is_over else openings:
        text, is_half = _without_half_tag(text, opening)
        reply.is_complete = reply.is_complete and not is_half
    reply.content += text


def _without_half_tag(text: str, tag: str) -> tuple[str, bool]:
    """The text without the beginning of `tag` (two characters at least) that it may end with, and whether it did."""
    for length in range(min(len(text), len(tag) - 1), 1, -1):
        if text.endswith(tag[:length]):
            return text[:-length], True
    return text, False
