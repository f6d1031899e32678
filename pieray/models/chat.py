"""Chat templates, rendered as transformers does, in jinja2's immutable sandbox."""

from __future__ import annotations

import datetime
import json
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
    **names: object,
) -> str:
    """The prompt text of a conversation; `names` are what else the template may use, such as `bos_token`.

    InvalidRequest carries the template's own complaint, for instance about the order of roles.
    """
    try:
        return _compiled(template).render(
            messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **names
        )
    except (TemplateError, TypeError, KeyError, ArithmeticError, OverflowError) as error:
        raise InvalidRequest(f"the chat template refuses these messages: {error}") from error


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
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
    return env.from_string(template)


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
