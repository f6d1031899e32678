"""WIT interface `embeds`: embeddings as the input of passes."""

from __future__ import annotations

import numpy as np

from pieray.arrays import F32, U32
from pieray.config import Limits
from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.host.device.embeds import Embedding, EmbedLookup, check_model
from pieray.host.device.model_side import ModelSide, ModelSides
from pieray.host.tables import HandleTables
from pieray.host.tickets import Kind, TicketTable


class EmbedsHandlers:
    """Embeddings by handle; of tokens only the ids are kept."""

    def __init__(self, limits: Limits, tables: HandleTables, tickets: TicketTable, sides: ModelSides) -> None:
        self._limits = limits
        self._tables = tables
        self._tickets = tickets
        self._sides = sides

    def text(self, tokens: U32) -> int:
        return self.text_for("", tokens)

    def text_for(self, model: str, tokens: U32) -> int:
        side = self._side(model)
        vocab = side.info.vocab_size
        if len(tokens) == 0:
            raise InvalidRequest("embeddings have at least 1 row; given 0 tokens")
        if int(tokens.max()) >= vocab:
            raise InvalidRequest(f"token ids are below {vocab}; given {int(tokens.max())}")
        ids = tokens.astype("<u4").tobytes()
        return self._tables.embeds.put(Embedding(len(tokens), tokens=ids, model=self._sides.name_of(side)))

    def put(self, values: F32) -> int:
        return self.put_for("", values)

    def put_for(self, model: str, values: F32) -> int:
        side = self._side(model)
        hidden = side.info.hidden_size
        if len(values) == 0 or len(values) % hidden:
            raise InvalidRequest(f"embeddings are rows of {hidden} floats, at least 1; given {len(values)} floats")
        if not np.isfinite(values).all():
            raise InvalidRequest("embeddings are finite; given NaN or inf")
        rows = values.astype("<f4").tobytes()
        return self._tables.embeds.put(Embedding(len(values) // hidden, values=rows, model=self._sides.name_of(side)))

    def _side(self, model: str) -> ModelSide:
        with self._tickets.lock:
            return self._sides.of(model)

    def size(self, embed: int) -> int:
        return self._tables.embeds.get(embed).num_rows

    def values(self, queue: int, embed: int) -> int:
        found, embedding = self._tables.queues.get(queue), self._tables.embeds.get(embed)
        side = self._sides.of_queue(found)
        check_model(embed, embedding, found)
        num_bytes = embedding.num_rows * side.info.hidden_size * 4
        if num_bytes > self._limits.message_bytes:
            raise QuotaExceeded(
                f"message_bytes: the limit is {self._limits.message_bytes}; the values of "
                f"{embedding.num_rows} rows have {num_bytes}"
            )
        with self._tickets.lock:
            if embedding.values:
                ticket = self._tickets.issue(Kind.FLOATS)
                self._tickets.resolve(ticket, embedding.values)
                return ticket
            side.outbox.check_room()
            what = f"the values of {embedding.num_rows} rows have"
            ticket = side.outbox.results.open_result(Kind.FLOATS, num_bytes, what).number
            side.outbox.stage(EmbedLookup(ticket, found, embedding.tokens))
        return ticket

    def free(self, embeds: U32) -> None:
        self._tables.embeds.free(embeds.tolist())
