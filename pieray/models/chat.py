"""Chat templates, rendered as transformers does, in jinja2's immutable sandbox."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pieray.errors import InvalidRequest
from pieray.texts import check_unicode

Message = Mapping[str, Any]


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    names: Mapping[str, object] | None = None,
    now: int = 0,
) -> str:
    """The prompt text of a conversation; `names` are what else the template may use, such as `bos_token`.

    `now`: seconds since 1970, for templates that tell the date; 0: the present time.  A content that is a list of text
    parts is one text to templates that do not look at parts.  InvalidRequest carries the template's own complaint, for
    instance about the order of roles.
    """
    told = [_with_text(message, takes_parts=_takes_parts(template)) for message in messages]
    if _needs_parts(template):
        told = [_in_parts(message) for message in told]
    try:
        when = datetime.datetime.fromtimestamp(now) if now else datetime.datetime.now()
        known = {
            "messages": told,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": when.strftime,
        }
        return _compiled(template).render({**(names or {}), **known})
    except Exception as error:  # of the template's filters and methods on these messages: any may come
        raise InvalidRequest(f"the chat template refuses these messages: {error}") from error


@lru_cache(maxsize=32)
def reads_name(template: str, name: str) -> bool:
    """Whether the template uses a name that it is given, such as `tools`."""
    try:
        parsed = _environment().parse(template)
    except TemplateError:
        return True  # rendering tells what is wrong
    return any(one.name == name and one.ctx == "load" for one in parsed.find_all(nodes.Name))


@lru_cache(maxsize=16)
def _takes_parts(template: str) -> bool:
    """Whether the template goes through the parts of a content."""
    return re.search(r"for\s+\w+\s+in\s+\w+(\.content|\[['\"]content['\"]\])", template) is not None


def _with_text(message: Message, *, takes_parts: bool) -> Message:
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind == "image" and takes_parts:
            continue
        if kind != "text" or not isinstance(part.get("text"), str):
            known = "{type: text, text}" + ", {type: image}" * takes_parts
            raise InvalidRequest(f"the parts of a content are {known}; given one of type {kind!r}")
    return message if takes_parts else {**message, "content": "".join([part["text"] for part in parts])}


@lru_cache(maxsize=16)
def _needs_parts(template: str) -> bool:
    """Whether the template takes parts alone: it goes through them without asking whether they are a text."""
    return (
        _takes_parts(template) and re.search(r"\bis\s+(not\s+)?(string|iterable|sequence|mapping)\b", template) is None
    )


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def json_object(name: str, text: str) -> dict[str, Any]:
    """A JSON object; raises InvalidRequest."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is a JSON object: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"{name} is a JSON object; given {type(parsed).__name__}")
    check_unicode(name, text, parsed)
    return parsed


def json_objects(name: str, text: str, shape: str) -> list[dict[str, Any]]:
    """A JSON list of objects; raises InvalidRequest, which says of what `shape` they are to be."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is a JSON list of {shape}: {error}") from None
    if not isinstance(parsed, list) or not all(isinstance(m, dict) for m in parsed):
        raise InvalidRequest(f"{name} is a JSON list of {shape}; given {type(parsed).__name__}")
    check_unicode(name, text, parsed)
    return parsed


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said; for rendering its body is all that counts."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    return env


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
