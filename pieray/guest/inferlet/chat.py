"""Conversations, as the model's own chat template writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _convert, _host


@dataclass(slots=True)
class Reply:
    """A reply taken apart.  `tool_calls`: {"name", "arguments"}, with "id" if the model gave one; not complete: it only
    begins a call or a thought."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    is_complete: bool = True


def render(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = True,
    model: str = "",
    arguments: Mapping[str, Any] | None = None,
    now: int = 0,
) -> str:
    """Messages ({role, content}) as the model's chat template writes them, with the `tools` it may call.

    Tools that the template does not know of are told in the system message, or with the first question.  A content is a
    text, or a list of {"type": "text", "text": ...}.  `arguments`: further names that the template
    knows, such as {"enable_thinking": False}.  `now`: seconds since 1970, for templates that tell the date.
    """
    text = _json("messages", messages)
    offered = _json("tools", tools) if tools else ""
    names = ""
    if arguments:
        names = _convert.to_json("arguments", dict(_convert.instance("arguments", arguments, Mapping)))  # type: ignore[type-abstract]
    return str(_host.chat.render(model, text, offered, add_generation_prompt, names, now))


def parse(text: str, *, model: str = "", is_over: bool = False) -> Reply:
    """The parts of a reply, special tokens included, in the format that the model's chat template tells of.

    `is_over`: no more comes, so that a call that lacks only its closing tag counts.  Arguments that a model writes as
    tagged texts (Qwen3-Coder) are texts.
    """
    return Reply(**json.loads(_host.chat.parse(model, text, is_over)))


def _json(name: str, values: Any) -> str:
    return _convert.to_json(name, [dict(one) for one in _convert.instances(name, values, Mapping)])  # type: ignore[type-abstract]
