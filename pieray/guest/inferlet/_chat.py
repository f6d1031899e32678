"""The conversation of a context: what text the model's chat template adds for each message."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from . import chat
from .errors import Unsupported

#: Stands for the assistant's reply, whose tokens the context has already.
REPLY = "b"


@dataclass(frozen=True, slots=True)
class Chat:
    """The messages so far; `is_open`: the assistant's turn has begun and its reply is not closed."""

    messages: tuple[dict[str, Any], ...] = ()
    is_open: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    """Offered to the model by its template."""

    def add(self, message: dict[str, Any], model: str, ended_by: str) -> tuple[str, Chat]:
        """The text that `message` adds.

        It closes an open reply first; `ended_by` is the text of the stop token that the reply ends with, which
        is then not repeated.
        """
        messages = self.messages
        if not self.is_open:
            added = self._difference((*messages, message), messages, model, "")
            return added, replace(self, messages=(*messages, message))
        messages = (*messages, {"role": "assistant", "content": REPLY})
        added = self._difference((*messages, message), self.messages, model, REPLY)
        return added.removeprefix(ended_by), replace(self, messages=(*messages, message), is_open=False)

    def open(self, model: str) -> tuple[str, Chat]:
        """The text that begins the assistant's turn."""
        text = self._render(self.messages, model, add_generation_prompt=True)
        before = self._render(self.messages, model)
        return _rest(text, before), replace(self, is_open=True)

    def _difference(self, after: tuple[dict[str, Any], ...], before: tuple[dict[str, Any], ...], model: str,
                    reply: str) -> str:  # fmt: skip
        text = self._render(after, model)
        if not before:
            return text
        start = self._render(before, model, add_generation_prompt=bool(reply))
        return _rest(text, start + reply)

    def _render(self, messages: tuple[dict[str, Any], ...], model: str, *, add_generation_prompt: bool = False) -> str:
        return chat.render(messages, tools=self.tools, add_generation_prompt=add_generation_prompt, model=model)

    @property
    def awaits_reply(self) -> bool:
        """The last message asks for the assistant's."""
        return bool(self.messages) and not self.is_open and self.messages[-1]["role"] != "assistant"


def _rest(text: str, start: str) -> str:
    if not text.startswith(start):
        raise Unsupported(
            "this model's chat template rewrites earlier turns: render the whole conversation with "
            "chat.render into a new Context"
        )
    return text[len(start) :]
