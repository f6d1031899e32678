"""WIT interface `model`: facts, text to tokens and back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.host.handlers.base import U32, HandlerGroup
from pieray.host.text.textstreams import TextStream
from pieray.models.detokenizer import PRIME_TOKENS
from pieray.wasm.parks import Answer

INLINE_BYTES = 1024
"""Longer texts are tokenized elsewhere (see `TextWorkers`): a millisecond, of a slow tokenizer, and as long as that."""
INLINE_TOKENS = 1024
"""The same of tokens that become text."""
PUSHES_AT_ONCE = 128
BYTES_PER_TOKEN = 4
"""What a token costs in `Limits.tokenize_bytes` when it becomes text: about as long as so many bytes the other way."""
BYTES_PER_PUSH = 16
"""The same in a stream, token by token."""


class ModelHandlers(HandlerGroup):
    """Models and their tokenizers; answered in the InferletActor itself."""

    def names(self) -> Sequence[str]:
        return self._state.models.names

    def info(self, model: str) -> str:
        return self._state.models.info_json(model)

    def tokenize(self, model: str, text: str) -> Sequence[int] | Future[Answer]:
        found = self._state.models.get(model)
        self._check_text_size(text)
        if len(text) > INLINE_BYTES:
            return self._work_on_text("tokenize", found, text, read=_tokens)
        return found.tokenizer.encode(text)

    def detokenize(self, model: str, tokens: U32, skip_special: bool) -> str | Future[Answer]:
        found = self._state.models.get(model)
        self._check_num_tokens(tokens, BYTES_PER_TOKEN)
        _check_tokens(tokens, found.info.vocab_size)
        if len(tokens) > INLINE_TOKENS:
            return self._work_on_text("detokenize", found, tokens.astype("<u4").tobytes(), skip_special)
        return found.tokenizer.decode(tokens.tolist(), skip_special_tokens=skip_special)

    def stop_tokens(self, model: str) -> Sequence[int]:
        return self._state.models.get(model).tokenizer.eos_ids

    def stream_open(self, model: str, skip_special: bool, after: U32) -> int:
        state = self._state
        found = state.models.get(model)
        after = after[-PRIME_TOKENS:]
        _check_tokens(after, found.info.vocab_size)
        return state.streams.open(found.tokenizer, skip_special, after.tolist())

    def stream_push(self, stream: int, tokens: U32) -> str | Future[Answer]:
        found = self._state.streams.get(stream)
        if len(tokens) == 1:
            return found.push(int(tokens[0]))
        self._check_num_tokens(tokens, BYTES_PER_PUSH)
        if len(tokens) > INLINE_TOKENS:
            return self._work(lambda: _pushed(found, tokens))
        return _pushed(found, tokens)

    def stream_stop(self, stream: int, texts: list[str]) -> None:
        self._state.streams.get(stream).stop_at(texts)

    def stream_stopped(self, stream: int) -> str:
        return self._state.streams.get(stream).stopped_by

    def stream_rest(self, stream: int) -> str:
        return self._state.streams.get(stream).rest()

    def stream_close(self, stream: int) -> None:
        self._state.streams.close(stream)

    def _check_num_tokens(self, tokens: U32, num_bytes: int) -> None:
        """Raise QuotaExceeded for more tokens than one call may have worked on; each counts as `num_bytes` of text."""
        limit = self._state.limits.tokenize_bytes
        if len(tokens) * num_bytes > limit:
            raise QuotaExceeded(
                f"tokenize_bytes: the limit is {limit} in one call, {limit // num_bytes} tokens; given {len(tokens)}"
            )


def _tokens(data: bytes) -> U32:
    return np.frombuffer(data, "<u4")


def _pushed(stream: TextStream, tokens: U32) -> str:
    texts = []
    for number, token in enumerate(tokens.tolist()):
        if number % PUSHES_AT_ONCE == 0:
            time.sleep(0)  # let others have the interpreter's lock
        texts.append(stream.push(token))
    return "".join(texts)


def _check_tokens(tokens: U32, vocab: int) -> None:
    if len(tokens) and int(tokens.max()) >= vocab:
        raise InvalidRequest(f"token ids are below {vocab}; given {int(tokens.max())}")
