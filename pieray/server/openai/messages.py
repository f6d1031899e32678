"""Messages of a chat, and the tools that it offers."""

from __future__ import annotations

from typing import Any

from pieray.server.json_texts import loaded
from pieray.server.problems import BadField
from pieray.server.values import listed, mapping, one_of, shown, text

ROLES = ("developer", "system", "user", "assistant", "tool")
_MESSAGE = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"}
_NO_MESSAGE = {"refusal", "audio", "function_call", "annotations"}


def messages(name: str, value: Any) -> dict[str, Any]:
    given = listed(name, value, 1 << 14)
    if not given:
        raise BadField(name, "is a list of at least one message")
    return {"messages": [_message(f"{name}[{at}]", one) for at, one in enumerate(given)]}


def _message(name: str, value: Any) -> dict[str, Any]:
    given = {key: one for key, one in mapping(name, value).items() if one is not None}
    role = one_of(f"{name}.role", given.get("role"), ROLES)
    for key, one in given.items():
        if key not in _MESSAGE and not (key in _NO_MESSAGE and not one):
            raise BadField(f"{name}.{key}", "is not served here", code="unsupported_field")
    found: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = given.get("content")
    if isinstance(content, list):
        found["content"] = [_part(f"{name}.content[{at}]", part, role) for at, part in enumerate(content)]
    elif content is not None:
        found["content"] = text(f"{name}.content", content, 1 << 24)
    elif role != "assistant":
        raise BadField(f"{name}.content", "is missing")
    for key in ("name", "tool_call_id"):
        if key in given:
            found[key] = text(f"{name}.{key}", given[key], 512)
    if (thought := given.get("reasoning_content", given.get("reasoning"))) is not None:
        found["reasoning_content"] = text(f"{name}.reasoning_content", thought, 1 << 24)
    if given.get("tool_calls"):
        calls = listed(f"{name}.tool_calls", given["tool_calls"], 1024)
        found["tool_calls"] = [_call(f"{name}.tool_calls[{at}]", one) for at, one in enumerate(calls)]
    return found


def _or(value: Any, default: Any) -> Any:
    """A value, or what stands for it where it is null or not there."""
    return default if value is None else value


def _part(name: str, value: Any, role: str) -> dict[str, Any]:
    given = mapping(name, value)
    if given.get("type") == "refusal" and role == "assistant":  # what it said, in other words
        return {"type": "text", "text": text(f"{name}.refusal", given.get("refusal"), 1 << 24)}
    if given.get("type") == "image_url" and role in ("user", "tool"):
        return _image(f"{name}.image_url", given.get("image_url"))
    if given.get("type") != "text":
        raise BadField(
            f"{name}.type",
            f"is text, or image_url of a user; given {shown(given.get('type'))}",
            code="unsupported_field",
        )
    return {"type": "text", "text": text(f"{name}.text", given.get("text"), 1 << 24)}


def _image(name: str, value: Any) -> dict[str, Any]:
    """An image in a `data:` URL.  Nothing is fetched: a server that does so asks whom its clients name."""
    given = mapping(name, value)
    for key, one in given.items():
        if key not in ("url", "detail") and one is not None:
            raise BadField(f"{name}.{key}", "is not served here", code="unsupported_field")
    if given.get("detail") is not None:
        one_of(f"{name}.detail", given["detail"], ("auto", "low", "high"))
    url = text(f"{name}.url", given.get("url"), 1 << 24)
    if not url.startswith("data:"):
        scheme = url.partition(":")[0][:20]
        raise BadField(
            f"{name}.url",
            f"is a data: URL that holds the image: nothing is fetched here; given {shown(scheme)}",
            code="unsupported_field",
        )
    if not url.partition(",")[0].endswith(";base64"):
        raise BadField(f"{name}.url", f"is data:image/...;base64,...; given {shown(url[:40])}")
    return {"type": "image_url", "image_url": {"url": url}}


def _call(name: str, value: Any) -> dict[str, Any]:
    """With its arguments as an object, as chat templates take them."""
    given = mapping(name, value)
    function = mapping(f"{name}.function", given.get("function"))
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            arguments = loaded(arguments)
        except (ValueError, RecursionError) as error:
            raise BadField(f"{name}.function.arguments", f"is JSON: {error}") from None
    return {
        "id": text(f"{name}.id", _or(given.get("id"), ""), 512),
        "type": "function",
        "function": {
            "name": text(f"{name}.function.name", function.get("name"), 256),
            "arguments": mapping(f"{name}.function.arguments", arguments),
        },
    }


def tools(name: str, value: Any) -> dict[str, Any]:
    return {"tools": [_tool(f"{name}[{at}]", one) for at, one in enumerate(listed(name, value, 1024))] or None}


def _tool(name: str, value: Any) -> dict[str, Any]:
    given = mapping(name, value)
    if given.get("type") != "function":
        raise BadField(f"{name}.type", f"is function; given {shown(given.get('type'))}", code="unsupported_field")
    function = mapping(f"{name}.function", given.get("function"))
    found: dict[str, Any] = {"name": text(f"{name}.function.name", function.get("name"), 256)}
    if function.get("description") is not None:
        found["description"] = text(f"{name}.function.description", function["description"])
    if function.get("parameters") is not None:
        found["parameters"] = mapping(f"{name}.function.parameters", function["parameters"])
    return {"type": "function", "function": found}


def tool_choice(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"tool_choice": one_of(name, value, ("none", "auto", "required"))}
    given = mapping(name, value)
    if given.get("type") != "function":
        raise BadField(f"{name}.type", f"is function; given {shown(given.get('type'))}", code="unsupported_field")
    function = mapping(f"{name}.function", given.get("function"))
    return {"tool_choice": forced_name(f"{name}.function.name", function.get("name"))}


def forced_name(name: str, value: Any) -> str:
    """The tool that is forced."""
    forced = text(name, value, 256)
    if forced in ("none", "auto", "required"):
        raise BadField(name, f"is a tool that can be forced: one called {forced} cannot, as that is a choice itself")
    return forced
