"""Ways in which models write calls of tools: each taken out of a reply, and written.

A format is told from the chat template.  What is taken out follows the rules of `chat_parse`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from pieray.models.call_json import IN_BLOCK, MAX_BLOCKS, call_of, json_at, objects_at, skip
from pieray.models.python_calls import python_calls
from pieray.models.reply import Reply, without_half_tag

Extract: TypeAlias = Callable[[str, Reply, bool], None]
"""Takes the text of a reply, which it fills, and whether it is over."""
Calls: TypeAlias = Sequence[Mapping[str, Any]]
"""{"name", "arguments"} each."""

# -- out of a reply


def _none(text: str, reply: Reply, is_over: bool) -> None:  # noqa: ARG001 - as all formats
    reply.content = text


def _hermes(text: str, reply: Reply, is_over: bool) -> None:
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, among other text; several or a list in one block."""
    opening, closing = "<tool_call>", "</tool_call>"
    for _ in range(MAX_BLOCKS):
        before, opened, rest = text.partition(opening)
        if not opened:
            break
        reply.content += before
        found = objects_at(rest, 0)
        end = skip(rest, found.end)
        calls = [call_of(value, keys=IN_BLOCK) for value in found.values]
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
    reply.end(text, (opening,), is_over=is_over)


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
        reply.add(call, opening + body + closed)
        text = behind[skip(behind, 0) :].removeprefix("</tool_call>") if call is not None else behind
        if not is_over and text and "</tool_call>".startswith(text):
            text = ""
    reply.end(text, ("<tool_call>", opening), is_over=is_over)


_PARAMETER = re.compile(r"<parameter=([^>]*)>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)


def _function_of(body: str) -> dict[str, Any] | None:
    name, divided, written = body.partition(">")
    arguments = {key.strip(): value.removeprefix("\n").removesuffix("\n") for key, value in _PARAMETER.findall(written)}
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
        start = skip(rest, 0)
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
    reply.end(text, (opening,), is_over=is_over)


def _json_list(text: str, start: int, reply: Reply) -> str:
    """Take the calls of a list, or the one without a list, as far as they are whole; what is behind."""
    is_list = text[start] == "["
    place = start + is_list
    while True:
        place = skip(text, place, ",")
        if is_list and place >= len(text):
            reply.is_complete = False
            return ""
        if is_list and text[place] == "]":
            return text[place + 1 :]
        value, end, is_open = json_at(text, place)
        call = call_of(value, keys=IN_BLOCK)
        if is_open or call is None:
            reply.is_complete = not is_open
            reply.content += "" if is_open else text[place:]
            return ""
        reply.tool_calls.append(call)
        if not is_list:
            return text[end:]
        place = end


def _named(text: str, named: re.Match[str], reply: Reply) -> str:
    value, end, is_open = json_at(text, named.end())
    if is_open:
        reply.is_complete = False
        return ""
    call = call_of({"name": named[1], "arguments": value})
    if call is not None and named[2]:
        call["id"] = named[2]
    reply.add(call, "[TOOL_CALLS]" + text[: named.end()])
    return text[named.end() :] if call is None else text[end:]


def _llama(text: str, reply: Reply, is_over: bool) -> None:
    """<|python_tag|>{"name": ..., "parameters": {...}}; ... or calls in Python's syntax, behind other text; the same
    without the tag from the beginning of a line on."""
    tag = "<|python_tag|>"
    before, tagged, rest = text.partition(tag)
    if not tagged:
        text, is_half = (text, False) if is_over else without_half_tag(text, tag)
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
    place = skip(text, 0) if is_tagged else _next_bracket(text, 0)
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
    here = skip(text, place, ";")
    if text[here : here + 1] in ("{", "[") and (place == 0 or text[place - 1 : place] in ("}", "]", ")")):
        return here
    found = _BRACKET.search(text, place)
    return found.end() if found else -1


def _calls_at(text: str, place: int) -> tuple[list[dict[str, Any]], int, bool]:
    """Calls that are written at `place`, where they end, and whether the text merely ends within them."""
    if text[place : place + 1] == "{":
        value, end, is_open = json_at(text, place)
        call = call_of(value)
        return [call] if call else [], end, is_open
    found = objects_at(text, place)
    calls = [call for value in found.values if (call := call_of(value))]
    if calls and not found.is_open and len(calls) == len(found.values):
        return calls, found.end, False
    return python_calls(text, place)


def _gemma(text: str, reply: Reply, is_over: bool) -> None:
    """Calls that the reply begins with, in Python's syntax or as JSON, perhaps fenced; else as tags have them."""
    if not is_over and re.fullmatch(r"\s*`{1,3}\w*\s*", text):
        reply.is_complete = False
        return
    fence = re.match(r"\s*```(\w*)[ \t]*\n", text)
    place = skip(text, fence.end() if fence else 0)
    for _ in range(MAX_BLOCKS):
        if text[place : place + 1] not in ("[", "{") and not (fence and fence[1] == "tool_code" and text[place:]):
            break
        calls, end, is_open = _calls_at(text, place)
        if is_open and not is_over:
            reply.is_complete = False
            return
        if not calls:
            break
        reply.tool_calls += calls
        place = skip(text, end, ";")
        if text.startswith("`", place):
            text = text[place:].lstrip("`")
            break
        text, place = text[place:], 0
    _hermes(text, reply, is_over)


def _mark(words: str) -> str:
    """A special token of DeepSeek's, which has wide bars and lower blocks in place of blanks."""
    return f"<\uff5c{words.replace(' ', chr(0x2581))}\uff5c>"


_CALLS_BEGIN, _CALLS_END = _mark("tool calls begin"), _mark("tool calls end")
_CALL_BEGIN, _CALL_END, _CALL_PARTS = _mark("tool call begin"), _mark("tool call end"), _mark("tool sep")
_DEEPSEEK = re.compile(
    rf"\s*(?:function\s*{_CALL_PARTS}\s*([^\n{{<]+?)|([^\n{{<]+?)\s*{_CALL_PARTS})\s*(?:```(?:json)?\s*)?(?=\{{)"
)


def _deepseek(text: str, reply: Reply, is_over: bool) -> None:
    """Marked calls: "function", a mark, the name and fenced JSON (R1), or the name, a mark and JSON (V3.1); marks
    stand around all of them, too."""
    begin, end, opening, closing = _CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END
    for _ in range(MAX_BLOCKS):
        before, opened, rest = text.partition(opening)
        if not opened:
            break
        stripped = before.rstrip()
        reply.content += stripped.removesuffix(begin) if stripped.endswith(begin) else before
        named = _DEEPSEEK.match(rest)
        value, place, is_open = json_at(rest, named.end()) if named else (None, 0, False)
        behind = re.sub(r"^\s*(```)?\s*", "", rest[place:])
        call = call_of({"name": named[1] or named[2], "arguments": value}) if named and value is not None else None
        if call is not None and (behind.startswith(closing) or is_over):
            reply.tool_calls.append(call)
            text = behind.removeprefix(closing) if not closing.startswith(behind) else ""
            text = text[skip(text, 0) :].removeprefix(end) if text.lstrip().startswith((end, opening)) else text
        elif is_open or closing not in rest:
            reply.is_complete = False
            return
        else:
            written, _, text = rest.partition(closing)
            reply.content += opening + written + closing
    if not is_over and text.strip() and end.startswith(text.strip()):
        text = ""
    reply.end(text, (begin, opening), is_over=is_over)


def _granite(text: str, reply: Reply, is_over: bool) -> None:
    """<|tool_call|>[{"name": ..., "arguments": {...}}, ...], perhaps with a closing tag."""
    opening, closing = "<|tool_call|>", "<|/tool_call|>"
    for _ in range(MAX_BLOCKS):
        before, opened, rest = text.partition(opening)
        if not opened:
            break
        reply.content += before
        start = skip(rest, 0)
        if rest[start : start + 1] in ("[", "{"):
            text = _json_list(rest, start, reply)
            stripped = text.lstrip()
            text = stripped.removeprefix(closing) if stripped.startswith(closing) else text
        elif is_over or rest[start:]:
            text = rest
            reply.content += opening
        else:
            reply.is_complete = False
        if not reply.is_complete:
            return
    reply.end(text, (opening, closing), is_over=is_over)


# -- into a reply


def _blocks(calls: Calls) -> str:
    return "\n".join([f"<tool_call>\n{_json(call)}\n</tool_call>" for call in calls])


def _functions(calls: Calls) -> str:
    def written(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    found = []
    for call in calls:
        values = [f"<parameter={key}>\n{written(value)}\n</parameter>\n" for key, value in call["arguments"].items()]
        found.append(f"<tool_call>\n<function={call['name']}>\n{''.join(values)}</function>\n</tool_call>")
    return "\n".join(found)


def _json(call: Mapping[str, Any], arguments: str = "arguments") -> str:
    return json.dumps({"name": call["name"], arguments: call["arguments"]}, ensure_ascii=False)


def _list(calls: Calls) -> str:
    return f"[{', '.join(map(_json, calls))}]"


def _python(calls: Calls) -> str:
    def one(call: Mapping[str, Any]) -> str:
        return f"{call['name']}({', '.join([f'{key}={value!r}' for key, value in call['arguments'].items()])})"

    return f"[{', '.join(map(one, calls))}]"


def _marked(calls: Calls) -> str:
    def one(call: Mapping[str, Any]) -> str:
        written = json.dumps(call["arguments"], ensure_ascii=False)
        return f"{_CALL_BEGIN}function{_CALL_PARTS}{call['name']}\n```json\n{written}\n```{_CALL_END}"

    return _CALLS_BEGIN + "\n".join(map(one, calls)) + _CALLS_END


# -- all of them


class Format(NamedTuple):
    name: str
    is_told_by: Callable[[str], bool]
    """Whether a chat template tells of it."""
    extract: Extract
    write: Callable[[Calls], str]


FORMATS = (
    Format("deepseek", lambda template: _CALL_BEGIN in template, _deepseek, _marked),
    Format("coder", lambda template: "<function=" in template, _coder, _functions),
    Format("hermes", lambda template: "<tool_call>" in template, _hermes, _blocks),
    Format(
        "mistral", lambda template: "[TOOL_CALLS]" in template, _mistral, lambda calls: f"[TOOL_CALLS] {_list(calls)}"
    ),
    Format(
        "granite", lambda template: "<|tool_call|>" in template, _granite, lambda calls: f"<|tool_call|>{_list(calls)}"
    ),
    Format(
        "llama",
        lambda template: "<|python_tag|>" in template or '"parameters": ' in template,
        _llama,
        lambda calls: "; ".join([_json(call, "parameters") for call in calls]),
    ),
    Format("python", lambda template: "func_name1(" in template or "python list" in template, _llama, _python),
    Format(
        "json",
        lambda template: '{"name": "' in template and '"arguments": ' in template,
        _bare,
        lambda calls: "\n".join(map(_json, calls)),
    ),
    Format("gemma", lambda template: "<start_of_turn>" in template, _gemma, _python),
    Format("plain", bool, _hermes, _blocks),
    Format("none", lambda _: True, _none, _blocks),
)
"""The first that is told of is used.  Templates that tell of none are told how to write calls: see `chat_tools`."""


def format_of(template: str | None) -> Format:
    """The format in which a model with this chat template (None: without one) writes calls."""
    text = (template or "").replace('\\"', '"')
    return next(one for one in FORMATS if one.is_told_by(text))
