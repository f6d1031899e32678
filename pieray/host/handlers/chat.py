"""WIT interface `chat`: conversations, as the model's own chat template writes them."""

from __future__ import annotations

from concurrent.futures import Future

from pieray.host.handlers.slow_work import SlowWork
from pieray.host.models import ModelDirectory
from pieray.wasm.parks import Answer

INLINE_BYTES = 4096
"""Longer texts are worked on elsewhere: see `TextWorkers`."""


class ChatHandlers:
    """Rendering and parsing; answered in the InferletActor itself."""

    def __init__(self, models: ModelDirectory, slow: SlowWork) -> None:
        self._models = models
        self._slow = slow

    def render(
        self, model: str, messages: str, tools: str, add_generation_prompt: bool, arguments: str, now: int
    ) -> str | Future[Answer]:
        for text in (messages, tools, arguments):
            self._slow.check_text(text)
        found = self._models.get(model)
        if len(messages) + len(tools) + len(arguments) > INLINE_BYTES:
            return self._slow.on_text("render", found, messages, tools, add_generation_prompt, arguments, now)
        return found.tokenizer.render_json(messages, tools, add_generation_prompt, arguments, now)

    def parse(self, model: str, text: str, is_over: bool) -> str | Future[Answer]:
        self._slow.check_text(text)
        found = self._models.get(model)
        if len(text) > INLINE_BYTES:
            return self._slow.on_text("parse", found, text, is_over)
        return found.tokenizer.parse_reply(text, is_over=is_over).to_json()
