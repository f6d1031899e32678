"""/v1/responses: its fields.

Nothing is stored: what a conversation was before comes with its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pieray.server.openai.fields import Asked, Field, read_fields, refused
from pieray.server.openai.grammars import json_grammar
from pieray.server.openai.messages import forced_name
from pieray.server.openai.response_items import read_items
from pieray.server.openai.tables import DOORS, MOST_LOGPROBS, SAMPLING
from pieray.server.problems import BadField
from pieray.server.values import boolean, integer, listed, mapping, number, one_of, shown, text

LOGPROBS = "message.output_text.logprobs"
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _max_tokens(name: str, value: Any) -> dict[str, Any]:
    return {"max_tokens": integer(name, value, 1, (1 << 32) - 1), "told": {name: value}}


def _include(name: str, value: Any) -> dict[str, Any]:
    for one in listed(name, value, 16):
        if one != LOGPROBS:
            raise BadField(name, f"is not served here but for {LOGPROBS}; given {shown(one)}", code="unsupported_field")
    return {"has_logprobs": bool(value)}


def _text_format(name: str, value: Any) -> dict[str, Any]:
    given = mapping(name, value)
    for key, one in given.items():
        if key != "format" and not (key == "verbosity" and one in (None, "medium")):
            raise BadField(f"{name}.{key}", "is not served here: only format is", code="unsupported_field")
    form = mapping(f"{name}.format", given.get("format") or {"type": "text"})
    kind = one_of(f"{name}.format.type", form.get("type"), ("text", "json_object", "json_schema"))
    told = {"told": {"text": {"format": form}}}
    if kind == "text":
        return told
    schema = {"type": "object"} if kind == "json_object" else form.get("schema")
    return {**json_grammar(f"{name}.format.schema", schema), **told}


def _reasoning(name: str, value: Any) -> dict[str, Any]:
    given = {key: one for key, one in mapping(name, value).items() if one is not None}
    for key in given:
        if key != "effort":
            raise BadField(f"{name}.{key}", "is not served here: only effort is", code="unsupported_field")
    if "effort" not in given:
        return {}
    effort = one_of(f"{name}.effort", given["effort"], EFFORTS)
    template = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    return {"template": template, "told": {"reasoning": {"effort": effort, "summary": None}}}


def _tools(name: str, value: Any) -> dict[str, Any]:
    tools = [_tool(f"{name}[{at}]", one) for at, one in enumerate(listed(name, value, 1024))]
    return {"tools": tools or None, "told": {"tools": value}}


def _tool(name: str, value: Any) -> dict[str, Any]:
    given = mapping(name, value)
    if given.get("type") != "function":
        raise BadField(f"{name}.type", f"is function; given {shown(given.get('type'))}", code="unsupported_field")
    function: dict[str, Any] = {"name": text(f"{name}.name", given.get("name"), 256)}
    if given.get("description") is not None:
        function["description"] = text(f"{name}.description", given["description"])
    if given.get("parameters") is not None:
        function["parameters"] = mapping(f"{name}.parameters", given["parameters"])
    return {"type": "function", "function": function}


def _tool_choice(name: str, value: Any) -> dict[str, Any]:
    told = {"told": {name: value}}
    if isinstance(value, str):
        return {"tool_choice": one_of(name, value, ("none", "auto", "required")), **told}
    given = mapping(name, value)
    if given.get("type") != "function":
        raise BadField(f"{name}.type", f"is function; given {shown(given.get('type'))}", code="unsupported_field")
    return {"tool_choice": forced_name(f"{name}.name", given.get("name")), **told}


def _told(name: str, value: Any) -> dict[str, Any]:
    """A number of the sampler, which the answer repeats."""
    return {name: number(name, value, 0, 2 if name == "temperature" else 1), "told": {name: value}}


def _parallel(name: str, value: Any) -> dict[str, Any]:
    return {name: boolean(name, value), "told": {name: value}}


def _metadata(name: str, value: Any) -> dict[str, Any]:
    given = mapping(name, value)
    if len(given) > 16:
        raise BadField(name, f"has at most 16 entries; given {len(given)}")
    return {"told": {name: {text(name, key, 64): text(f"{name}.{key}", one, 512) for key, one in given.items()}}}


def _stream_options(name: str, value: Any) -> dict[str, Any]:
    for key, one in mapping(name, value).items():
        if one not in (None, False) or key != "include_obfuscation":
            raise BadField(f"{name}.{key}", "is not served here", code="unsupported_field")
    return {}


_SHARED = tuple(
    one
    for one in SAMPLING
    if one.name not in ("n", "temperature", "top_p", "prompt_logprobs", "return_token_ids", "response_format")
    and one.name != "return_tokens_as_token_ids"
)
RESPONSES = (
    Field(
        "input",
        "OpenAI",
        "a text, or items: messages, function calls and their outputs, reasoning",
        lambda n, v: {n: read_items(n, v)},
    ),
    Field("instructions", "OpenAI", "a system message before all else", lambda n, v: {n: text(n, v), "told": {n: v}}),
    *(one for one in DOORS if one.name != "stream_options"),
    Field("stream_options", "OpenAI", "`include_obfuscation`: false", _stream_options),
    Field(
        "safety_identifier",
        "OpenAI",
        "written in the log with the run",
        lambda n, v: {n: text(n, v, 512)},
        is_doors=True,
    ),
    Field(
        "prompt_cache_key",
        "OpenAI",
        "written in the log: pages are found by content",
        lambda n, v: {n: text(n, v, 512)},
        is_doors=True,
    ),
    Field("metadata", "OpenAI", "in the answer as it came", _metadata),
    Field("max_output_tokens", "OpenAI", "as much as the model's context has, if not given", _max_tokens),
    Field("temperature", "OpenAI", "0 to 2; 1 if not given", _told),
    Field("top_p", "OpenAI", "0 to 1", _told),
    Field("include", "OpenAI", f"`{LOGPROBS}`", _include),
    Field("top_logprobs", "OpenAI", f"0 to {MOST_LOGPROBS}", lambda n, v: {n: integer(n, v, 0, MOST_LOGPROBS)}),
    Field("text", "OpenAI", "`format`: text, json_object, json_schema", _text_format),
    Field("tools", "OpenAI", "functions, in the model's own format", _tools),
    Field("tool_choice", "OpenAI", "none, auto, required, or a function: the last two by grammar", _tool_choice),
    Field("parallel_tool_calls", "OpenAI", "false: the first call alone", _parallel),
    Field("reasoning", "OpenAI", "`effort`, told to the chat template; none: `enable_thinking` is false", _reasoning),
    *_SHARED,
    Field("include_reasoning", "vLLM", "false: thoughts are left out", lambda n, v: {n: boolean(n, v)}),
    refused("prompt_logprobs", "vLLM", "of chats and completions"),
    refused("return_token_ids", "vLLM", "of chats and completions", False),
    refused("return_tokens_as_token_ids", "vLLM", "of chats and completions", False),
    refused("response_format", "vLLM", "text.format"),
    refused("n", "vLLM", "of chats and completions", 1),
    refused("previous_response_id", "OpenAI", "nothing is stored: send the items before it as input"),
    refused("conversation", "OpenAI", "nothing is stored: send its items as input"),
    refused("prompt", "OpenAI", "nothing is stored"),
    refused("store", "OpenAI", "nothing is stored", False),
    refused("background", "OpenAI", "run an inferlet with wait: false", False),
    refused("background_options", "OpenAI", "run an inferlet with wait: false"),
    refused("truncation", "OpenAI", "truncate_prompt_tokens works", "disabled"),
    refused("max_tool_calls", "OpenAI", "tools are the client's: it calls them"),
    refused("context_management", "OpenAI", "the client has the conversation"),
    refused("service_tier", "OpenAI", "priority works", "auto", "default"),
    refused("moderation", "OpenAI", "there is none"),
    refused("image", "OpenAI", "the model writes texts"),
    refused("access_programs", "OpenAI", "there are none"),
    refused("prompt_cache_options", "OpenAI", "pages are found by content, and kept as long as there is room"),
    refused("prompt_cache_retention", "OpenAI", "pages are kept as long as there is room", "in_memory", "in-memory"),
)


def read_response(body: Mapping[str, Any]) -> Asked:
    """Raises BadField."""
    asked = read_fields("/v1/responses", body, RESPONSES)
    arguments = asked.arguments
    if "input" not in arguments:
        raise BadField("input", "is missing")
    told = arguments.pop("told", {})
    messages = arguments.pop("input")
    if (instructions := arguments.pop("instructions", None)) is not None:
        messages = [{"role": "system", "content": instructions}, *messages]
    arguments["messages"] = messages
    has_logprobs, top = arguments.pop("has_logprobs", False), arguments.pop("top_logprobs", None)
    if top and not has_logprobs:
        raise BadField("top_logprobs", f"needs include: [{LOGPROBS}]")
    if has_logprobs:
        arguments["logprobs"] = top or 0
    choice = arguments.get("tool_choice", "none")
    if choice not in ("none", "auto") and not arguments.get("tools"):
        raise BadField("tool_choice", "needs tools")
    if choice not in ("none", "auto") and "grammar" in arguments:
        raise BadField("tool_choice", "a forced call is a grammar already: give no other")
    if asked.is_stream:
        arguments["stream"] = True
    asked.door["told"] = told
    return asked
