"""Conversations, as the model's own chat template writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _convert, _host


@dataclass(slots=True)
class Reply:
    """A reply taken apart.  `tool_calls`: {"name", "arguments"}; not complete: it only begins a call or a thought."""

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
) -> str:
    """Messages ({role, content}) as the model's chat template writes them, with the `tools` it may call."""
    text = _json("messages", messages)
    offered = _json("tools", tools) if tools else ""
    return str(_host.chat.render(model, text, offered, add_generation_prompt))


def parse(text: str, *, model: str = "") -> Reply:
    """The parts of a reply, special tokens included, in the format that the model's chat template tells of."""
    return Reply(**json.loads(_host.chat.parse(model, text)))


def _json(name: str, values: Any) -> str:
    return _convert.to_json(name, [dict(one) for one in _convert.instances(name, values, Mapping)])  # type: ignore[type-abstract]
