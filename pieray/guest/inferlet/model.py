"""Models and their tokenizers; the model "" is the engine's default."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from . import _convert, _host
from .errors import BadHandle

PRIME_TOKENS = 16
"""So many of the last tokens say all about the text before a stream."""


def names() -> list[str]:
    """Names of the models served."""
    return list(_host.model.names())


def info(model: str = "") -> dict[str, Any]:
    """name, architecture, vocab_size, hidden_size, max_context (tokens), page_size, dtype, traits, bos_tokens (what the
    tokenizer puts before a text), thought_tags (what begins and ends a thought, or None)."""
    return dict(_info(_convert.text("model", model)))


@_host.cached
def _info(model: str) -> Mapping[str, Any]:
    return dict(json.loads(_host.model.info(model)))


def tokenize(text: str, model: str = "") -> list[int]:
    """Token ids of `text`."""
    return list(_host.model.tokenize(model, text))


def detokenize(tokens: Sequence[int], *, skip_special: bool = False, model: str = "") -> str:
    """Text of the tokens; bytes that are no UTF-8 become U+FFFD."""
    return str(_host.model.detokenize(model, tokens, skip_special))


def stop_tokens(model: str = "") -> frozenset[int]:
    """Tokens that end a turn."""
    return _stop_tokens(_convert.text("model", model))


@_host.cached
def _stop_tokens(model: str) -> frozenset[int]:
    return frozenset(_host.model.stop_tokens(model))


def special_token(text: str, model: str = "") -> int | None:
    """The special token that the text spells, if one does."""
    return _special_token(_convert.text("text", text), _convert.text("model", model))


@_host.cached
def _special_token(text: str, model: str) -> int | None:
    tokens = tokenize(text, model)
    is_special = len(tokens) == 1 and detokenize(tokens, model=model) == text
    return tokens[0] if is_special and not detokenize(tokens, skip_special=True, model=model) else None


class TextStream:
    """Incremental detokenizer: whole characters come out as soon as their last byte is in.

    Its text goes on behind that of the tokens `after`: with the blank between two words, or the rest of a character.
    """

    __slots__ = ("_handle",)

    def __init__(self, *, skip_special: bool = True, model: str = "", after: Sequence[int] = ()) -> None:
        self._handle: int | None = _host.model.stream_open(
            model, skip_special, _convert.u32s("after", after)[-PRIME_TOKENS:]
        )

    @property
    def handle(self) -> int:
        """What the handlers take.  Raises BadHandle once it is closed."""
        if self._handle is None:
            raise BadHandle("this text stream is closed")
        return self._handle

    def push(self, tokens: list[int]) -> str:
        """The text that `tokens` complete."""
        return str(_host.model.stream_push(self.handle, tokens))

    def close(self) -> None:
        """Close the stream; a second time does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _host.model.stream_close(handle)
