"""WIT interface `embeds`: embeddings as the input of passes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.host.device.embeds import Embedding, EmbedLookup
from pieray.host.device.tickets import Kind
from pieray.host.handlers.base import U32, HandlerGroup


class EmbedsHandlers(HandlerGroup):
    """Embeddings by handle; of tokens only the ids are kept."""

    def text(self, tokens: U32) -> int:
        vocab = self._state.models.get("").info.vocab_size
        if len(tokens) == 0:
            raise InvalidRequest("embeddings have at least 1 row; given 0 tokens")
        if int(tokens.max()) >= vocab:
            raise InvalidRequest(f"token ids are below {vocab}; given {int(tokens.max())}")
        return self._state.embeds.put(Embedding(len(tokens), tokens=tokens.astype("<u4").tobytes()))

    def put(self, values: npt.NDArray[np.float32]) -> int:
        hidden = self._state.models.get("").info.hidden_size
        if len(values) == 0 or len(values) % hidden:
            raise InvalidRequest(f"embeddings are rows of {hidden} floats, at least 1; given {len(values)} floats")
        if not np.isfinite(values).all():
            raise InvalidRequest("embeddings are finite; given NaN or inf")
        return self._state.embeds.put(Embedding(len(values) // hidden, values=values.astype("<f4").tobytes()))

    def size(self, embed: int) -> int:
        return self._state.embeds.get(embed).num_rows

    def values(self, queue: int, embed: int) -> int:
        state = self._state
        found, embedding = state.queue(queue), state.embeds.get(embed)
        num_bytes = embedding.num_rows * state.models.get("").info.hidden_size * 4
        if num_bytes > state.limits.message_bytes:
            raise QuotaExceeded(
                f"message_bytes: the limit is {state.limits.message_bytes}; the values of "
                f"{embedding.num_rows} rows have {num_bytes}"
            )
        with state.lock:
            if embedding.values:
                ticket = state.tickets.issue(Kind.FLOATS)
                state.tickets.resolve(ticket, embedding.values)
                return ticket
            state.outbox.check_room()
            what = f"the values of {embedding.num_rows} rows have"
            ticket = state.outbox.results.open_result(Kind.FLOATS, num_bytes, what).number
            state.outbox.stage(EmbedLookup(ticket, found, embedding.tokens))
        return ticket

    def free(self, embeds: U32) -> None:
        self._state.embeds.free(embeds.tolist())
