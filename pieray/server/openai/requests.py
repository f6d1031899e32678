"""From the JSON of a request to what is launched for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pieray.server.openai.fields import Asked, Field, read_fields
from pieray.server.openai.response_fields import RESPONSES
from pieray.server.openai.tables import CHAT, COMPLETIONS, EMBEDDINGS
from pieray.server.problems import BadField

COMPLETION_TOKENS = 16
"""Of a completion that does not say how many, as OpenAI has it."""

ROUTES: Mapping[str, tuple[Field, ...]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/embeddings": EMBEDDINGS,
}
"""The table of each route."""


def read_chat(body: Mapping[str, Any]) -> Asked:
    """Raises BadField."""
    asked = read_fields("/v1/chat/completions", body, CHAT)
    arguments = asked.arguments
    _require(arguments, "messages")
    has_logprobs, top = arguments.pop("has_logprobs", False), arguments.pop("top_logprobs", None)
    if top and not has_logprobs:
        raise BadField("top_logprobs", "needs logprobs: true")
    if has_logprobs:
        arguments["logprobs"] = top or 0
    effort = arguments.pop("reasoning_effort", None)
    if effort is not None:
        thinking = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        arguments["template"] = {**thinking, **arguments.get("template", {})}
    if arguments.get("continue_final_message") and arguments.get("add_generation_prompt"):
        raise BadField("continue_final_message", "cannot be with add_generation_prompt")
    choice = arguments.get("tool_choice", "none")
    if choice not in ("none", "auto") and not arguments.get("tools"):
        raise BadField("tool_choice", "needs tools")
    if choice not in ("none", "auto") and "grammar" in arguments:
        raise BadField("tool_choice", "a forced call is a grammar already: give no other")
    return _streaming(asked)


def read_completion(body: Mapping[str, Any]) -> Asked:
    """Raises BadField."""
    asked = read_fields("/v1/completions", body, COMPLETIONS)
    _require(asked.arguments, "prompts", "prompt")
    asked.arguments.setdefault("max_tokens", COMPLETION_TOKENS)
    if asked.arguments["max_tokens"] == 0 and not asked.arguments.get("echo"):
        raise BadField("max_tokens", "is at least 1, or 0 with echo; given 0")
    return _streaming(asked)


def read_embeddings(body: Mapping[str, Any]) -> Asked:
    """Raises BadField."""
    asked = read_fields("/v1/embeddings", body, EMBEDDINGS)
    _require(asked.arguments, "inputs", "input")
    return asked


def _streaming(asked: Asked) -> Asked:
    if "include_usage" in asked.door and not asked.is_stream:
        raise BadField("stream_options", "needs stream: true")
    if asked.is_stream:
        asked.arguments["stream"] = True
    return asked


def _require(arguments: Mapping[str, Any], name: str, field_name: str = "") -> None:
    if name not in arguments:
        raise BadField(field_name or name, "is missing")
