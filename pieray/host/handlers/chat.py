"""WIT interface `chat`: conversations, as the model's own chat template writes them."""

from __future__ import annotations

from concurrent.futures import Future

from pieray.host.handlers.base import HandlerGroup
from pieray.models.chat_parse import parse_reply
from pieray.wasm.parks import Answer

INLINE_BYTES = 4096
"""Longer texts are worked on elsewhere: see `TextWorkers`."""


class ChatHandlers(HandlerGroup):
    """Rendering and parsing; answered in the InferletActor itself."""

    def chat_render(self, model: str, messages: str, tools: str, add_generation_prompt: bool) -> str | Future[Answer]:
        self._check_text_size(messages)
        self._check_text_size(tools)
        found = self._state.models.get(model)
        if len(messages) + len(tools) > INLINE_BYTES:
            return self._work_on_text("render", found, messages, tools, add_generation_prompt)
        return found.tokenizer.render_json(messages, tools, add_generation_prompt=add_generation_prompt)

    def chat_parse(self, model: str, text: str) -> str | Future[Answer]:
        self._check_text_size(text)
        found = self._state.models.get(model)
        if len(text) > INLINE_BYTES:
            return self._work_on_text("parse", found, text)
        return parse_reply(found.tokenizer.spec.chat_template, text).to_json()
