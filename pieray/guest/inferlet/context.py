"""A context: a growing text, its tokens and their KV.  Written on the handlers alone: so could you."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any

from . import _host, tickets
from . import model as models
from ._chat import Chat
from ._generation import Generation, stop_rules
from ._loop import wait_ticket
from ._sequence import KvSequence
from .errors import InvalidRequest, raises
from .sampler import Sampler, sampler_of

#: Rows scored in one pass, so that a long continuation stays within the limit of tickets.
SCORE_CHUNK = 256


class Context:
    """Text that a model reads and continues.

    What is appended waits until it is needed or `flush`ed; the last token always waits, since the next token
    is sampled from its row.  `fork` shares the KV so far, copy-on-write.  Close it, use it as an asynchronous
    context manager, or let it go: its pages are given back.
    """

    def __init__(self, text: str | Sequence[int] = "", *, model: str = "") -> None:
        self.model = model
        self._tokens: list[int] = []
        self._sequence = KvSequence(model)
        self._marks: list[tuple[int, Chat]] = []
        if len(text):
            self.append(text)

    # -- content

    def append(self, text: str | Sequence[int]) -> Context:
        """Add text, or tokens, at the end."""
        self._sequence.check_open()
        self._tokens += models.tokenize(text, self.model) if isinstance(text, str) else text
        return self

    def chat(self, role: str, content: str) -> Context:
        """Add a message, as the model's chat template writes it; an open reply is closed first."""
        chat, ended_by = self._chat, ""
        if chat.is_open and self._tokens and self._tokens[-1] in stop_tokens_of(self.model):
            ended_by = models.detokenize(self._tokens[-1:], model=self.model)
        text, chat = chat.add({"role": role, "content": content}, self.model, ended_by)
        return self._mark(text, chat)

    def system(self, content: str) -> Context:
        """Add a system message."""
        return self.chat("system", content)

    def user(self, content: str) -> Context:
        """Add a user's message."""
        return self.chat("user", content)

    def assistant(self, content: str) -> Context:
        """Add an assistant's message, as if it had been generated."""
        return self.chat("assistant", content)

    def cue(self) -> Context:
        """Begin the assistant's turn now, so that `append` can begin its reply; `generate` does it by itself."""
        chat = self._chat
        return self if chat.is_open else self._mark(*chat.open(self.model))

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens, and the messages that end within them."""
        self._sequence.check_open()
        if not 0 <= length <= len(self._tokens):
            raise InvalidRequest(f"truncate keeps from 0 to {len(self._tokens)} tokens; given {length}")
        del self._tokens[length:]
        self._sequence.truncate(length)
        while self._marks and self._marks[-1][0] > length:
            self._marks.pop()

    @property
    def tokens(self) -> list[int]:
        """All tokens, those sampled included."""
        return list(self._tokens)

    @property
    def position(self) -> int:
        """Number of tokens."""
        return len(self._tokens)

    __len__ = position.fget  # type: ignore[assignment]

    @property
    def text(self) -> str:
        """All of it, special tokens included."""
        return models.detokenize(self._tokens, model=self.model)

    # -- KV

    @raises_async
    async def flush(self) -> None:
        """Run what waits, but for the last token: afterwards forks share its KV."""
