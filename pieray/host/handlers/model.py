"""WIT interface `model`: facts, text to tokens and back."""

from __future__ import annotations

from collections.abc import Sequence

from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.host.handlers.base import U32, HandlerGroup

BYTES_PER_TOKEN = 4
"""What a token costs in `Limits.tokenize_bytes` when it becomes text: about as long as so many bytes the other way."""
BYTES_PER_PUSH = 16
"""The same in a stream, token by token."""


class ModelHandlers(HandlerGroup):
    """Models and their tokenizers; answered in the InferletActor itself."""

    def model_names(self) -> Sequence[str]:
        return self._state.models.names

    def model_info(self, model: str) -> str:
        return self._state.models.info_json(model)

    def model_tokenize(self, model: str, text: str) -> Sequence[int]:
        found = self._state.models.get(model)
        self._check_text_size(text)
        return found.tokenizer.encode(text)

    def model_detokenize(self, model: str, tokens: U32, skip_special: bool) -> str:
        found = self._state.models.get(model)
        self._check_num_tokens(tokens, BYTES_PER_TOKEN)
        _check_tokens(tokens, found.info.vocab_size)
        return found.tokenizer.decode(tokens.tolist(), skip_special_tokens=skip_special)

    def model_stop_tokens(self, model: str) -> Sequence[int]:
        return self._state.models.get(model).tokenizer.eos_ids

    def model_stream_open(self, model: str, skip_special: bool) -> int:
        state = self._state
        return state.streams.open(state.models.get(model).tokenizer, skip_special)

    def model_stream_push(self, stream: int, tokens: U32) -> str:
        found = self._state.streams.get(stream)
        if len(tokens) == 1:
            return found.push(int(tokens[0]))
        self._check_num_tokens(tokens, BYTES_PER_PUSH)
        return "".join(found.push(token) for token in tokens.tolist())

    def model_stream_close(self, stream: int) -> None:
        self._state.streams.close(stream)

    def _check_num_tokens(self, tokens: U32, num_bytes: int) -> None:
        """Raise QuotaExceeded for more tokens than one call may have worked on; each counts as `num_bytes` of text."""
        limit = self._state.limits.tokenize_bytes
        if len(tokens) * num_bytes > limit:
            raise QuotaExceeded(f"tokenize_bytes: the limit is {limit} in one call, {limit // num_bytes} tokens; given "
                                f"{len(tokens)}")  # fmt: skip


def _check_tokens(tokens: U32, vocab: int) -> None:
    if len(tokens) and int(tokens.max()) >= vocab:
        raise InvalidRequest(f"token ids are below {vocab}; given {int(tokens.max())}")
