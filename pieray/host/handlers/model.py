"""WIT interface `model`: facts, text to tokens and back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from pieray.arrays import U32
from pieray.errors import InvalidRequest
from pieray.host.handlers.slow_work import SlowWork
from pieray.host.models import ModelDirectory
from pieray.host.open_handles import OpenHandles
from pieray.host.text.textstreams import TextStream, open_stream
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


class ModelHandlers:
    """Models and their tokenizers; answered in the InferletActor itself."""

    def __init__(self, models: ModelDirectory, streams: OpenHandles[TextStream], slow: SlowWork) -> None:
        self._models = models
        self._streams = streams
        self._slow = slow

    def names(self) -> Sequence[str]:
        return self._models.names

    def info(self, model: str) -> str:
        return self._models.info_json(model)

    def tokenize(self, model: str, text: str) -> Sequence[int] | Future[Answer]:
        found = self._models.get(model)
        self._slow.check_text(text)
        if len(text) > INLINE_BYTES:
            return self._slow.on_text("tokenize", found, text, read=_tokens)
        return found.tokenizer.encode(text)

    def detokenize(self, model: str, tokens: U32, skip_special: bool) -> str | Future[Answer]:
        found = self._models.get(model)
        self._slow.check_tokens(len(tokens), BYTES_PER_TOKEN)
        _check_tokens(tokens, found.info.vocab_size)
        if len(tokens) > INLINE_TOKENS:
            return self._slow.on_text("detokenize", found, tokens.astype("<u4").tobytes(), skip_special)
        return found.tokenizer.decode(tokens.tolist(), skip_special_tokens=skip_special)

    def stop_tokens(self, model: str) -> Sequence[int]:
        return self._models.get(model).tokenizer.eos_ids

    def stream_open(self, model: str, skip_special: bool, after: U32) -> int:
        found = self._models.get(model)
        after = after[-PRIME_TOKENS:]
        _check_tokens(after, found.info.vocab_size)
        self._streams.check_room()
        return self._streams.put(open_stream(found.tokenizer, skip_special, after.tolist()))

    def stream_push(self, stream: int, tokens: U32) -> str | Future[Answer]:
        found = self._streams.get(stream)
        if len(tokens) == 1:
            return found.push(int(tokens[0]))
        self._slow.check_tokens(len(tokens), BYTES_PER_PUSH)
        if len(tokens) > INLINE_TOKENS:
            return self._slow.do(lambda: _pushed(found, tokens))
        return _pushed(found, tokens)

    def stream_stop(self, stream: int, texts: list[str]) -> None:
        self._streams.get(stream).stop_at(texts)

    def stream_stopped(self, stream: int) -> str:
        return self._streams.get(stream).stopped_by

    def stream_rest(self, stream: int) -> str:
        return self._streams.get(stream).rest()

    def stream_close(self, stream: int) -> None:
        self._streams.pop(stream)


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
