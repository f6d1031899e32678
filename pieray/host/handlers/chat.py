"""WIT interface `chat`: conversations, as the model's own chat template writes them."""

from __future__ import annotations

import json
from typing import Any

from pieray.errors import InvalidRequest
from pieray.host.handlers.base import HandlerGroup
from pieray.models.chat_parse import parse_reply
from pieray.texts import check_unicode


class ChatHandlers(HandlerGroup):
    """Rendering and parsing; answered in the InferletActor itself."""

    def chat_render(self, model: str, messages: str, tools: str, add_generation_prompt: bool) -> str:
        self._check_text_size(messages)
        self._check_text_size(tools)
        tokenizer = self._state.models.get(model).tokenizer
        return tokenizer.render_chat(
            _objects("messages", messages, "{role, content}"),
            tools=_objects("tools", tools, "{type, function}") if tools else None,
            add_generation_prompt=add_generation_prompt,
        )

    def chat_parse(self, model: str, text: str) -> str:
        self._check_text_size(text)
        return parse_reply(self._state.models.get(model).tokenizer.spec.chat_template, text).to_json()


def _objects(name: str, text: str, shape: str) -> list[dict[str, Any]]:
    """A JSON list of objects; raises InvalidRequest."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is a JSON list of {shape}: {error}") from None
    if not isinstance(parsed, list) or not all(isinstance(m, dict) for m in parsed):
        raise InvalidRequest(f"{name} is a JSON list of {shape}; given {type(parsed).__name__}")
    check_unicode(name, text, parsed)
    return parsed
