"""WIT interface `chat`: conversations, as the model's own chat template writes them."""

from __future__ import annotations

from concurrent.futures import Future

from pieray.host.handlers.base import HandlerGroup
from pieray.wasm.parks import Answer

INLINE_BYTES = 4096
"""Longer texts are worked on elsewhere: see `TextWorkers`."""


class ChatHandlers(HandlerGroup):
    """Rendering and parsing; answered in the InferletActor itself."""

    def render(
        self, model: str, messages: str, tools: str, add_generation_prompt: bool, arguments: str, now: int
    ) -> str | Future[Answer]:
        for text in (messages, tools, arguments):
            self._check_text_size(text)
        found = self._state.models.get(model)
        if len(messages) + len(tools) + len(arguments) > INLINE_BYTES:
            return self._work_on_text("render", found, messages, tools, add_generation_prompt, arguments, now)
        return found.tokenizer.render_json(messages, tools, add_generation_prompt, arguments, now)

    def parse(self, model: str, text: str, is_over: bool) -> str | Future[Answer]:
        self._check_text_size(text)
        found = self._state.models.get(model)
        if len(text) > INLINE_BYTES:
            return self._work_on_text("parse", found, text, is_over)
        return found.tokenizer.parse_reply(text, is_over=is_over).to_json()
