"""The items of a response's input as messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pieray.server.json_texts import loaded
from pieray.server.problems import BadField
from pieray.server.values import listed, mapping, one_of, shown, text

_TEXTS = ("input_text", "output_text", "text")


def read_items(name: str, value: Any) -> list[dict[str, Any]]:
    """The items of an input as messages: calls, and a thought before them, are of one message of the assistant."""
    if isinstance(value, str):
        return [{"role": "user", "content": text(name, value, 1 << 24)}]
    messages: list[dict[str, Any]] = []
    for at, one in enumerate(listed(name, value, 1 << 14)):
        _take(messages, f"{name}[{at}]", mapping(f"{name}[{at}]", one))
    if not messages:
        raise BadField(name, "is empty")
    return messages


def _take(messages: list[dict[str, Any]], name: str, item: Mapping[str, Any]) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = one_of(f"{name}.role", item.get("role"), ("developer", "system", "user", "assistant"))
        content = _content(f"{name}.content", item.get("content"))
        if role == "assistant":
            _assistant(messages)["content"] = content
        else:
            messages.append({"role": "system" if role == "developer" else role, "content": content})
    elif kind == "function_call":
        arguments = text(f"{name}.arguments", item.get("arguments"), 1 << 24)
        try:
            parsed = mapping(f"{name}.arguments", loaded(arguments))
        except (ValueError, RecursionError) as error:
            raise BadField(f"{name}.arguments", f"is JSON: {error}") from None
        function = {"name": text(f"{name}.name", item.get("name"), 256), "arguments": parsed}
        call = {"id": text(f"{name}.call_id", item.get("call_id"), 512), "type": "function", "function": function}
        _assistant(messages, has_more=True).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _content(f"{name}.output", item.get("output"))
        call_id = text(f"{name}.call_id", item.get("call_id"), 512)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
    elif kind == "reasoning":
        given = [(part, item.get(part) or []) for part in ("content", "summary")]
        parts = [one for part, value in given for one in listed(f"{name}.{part}", value, 1 << 14)]
        thought = "".join(text(name, mapping(name, part).get("text"), 1 << 24) for part in parts)
        messages.append({"role": "assistant", "reasoning_content": thought})
    else:
        raise BadField(
            f"{name}.type",
            f"is message, function_call, function_call_output or reasoning; given {shown(kind)}",
            code="unsupported_field",
        )


def _assistant(messages: list[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    """The assistant's message that goes on: behind a thought, or, for a call (`has_more`), behind what it said."""
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant" and (has_more or "content" not in last):
        return last
    messages.append({"role": "assistant"})
    return messages[-1]


def _content(name: str, value: Any) -> str:
    if isinstance(value, str):
        return text(name, value, 1 << 24)
    parts = []
    for at, one in enumerate(listed(name, value, 1 << 14)):
        part = mapping(f"{name}[{at}]", one)
        if part.get("type") not in _TEXTS:
            raise BadField(
                f"{name}[{at}].type",
                f"is input_text: the model reads no other; given {shown(part.get('type'))}",
                code="unsupported_field",
            )
        parts.append(text(f"{name}[{at}].text", part.get("text"), 1 << 24))
    return "".join(parts)
