"""WIT interface `embeds`: embeddings as the input of passes."""

from __future__ import annotations

import numpy as np

from pieray.arrays import F32, U32
from pieray.config import Limits
from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.host.device.embeds import Embedding, EmbedLookup
from pieray.host.device.outbox import Outbox
from pieray.host.models import ModelDirectory
from pieray.host.tables import HandleTables
from pieray.host.tickets import Kind, TicketTable


class EmbedsHandlers:
    """Embeddings by handle; of tokens only the ids are kept."""

    def __init__(
        self, limits: Limits, models: ModelDirectory, tables: HandleTables, tickets: TicketTable, outbox: Outbox
    ) -> None:
        self._limits = limits
        self._models = models
        self._tables = tables
        self._tickets = tickets
        self._outbox = outbox

    def text(self, tokens: U32) -> int:
        vocab = self._models.get("").info.vocab_size
        if len(tokens) == 0:
            raise InvalidRequest("embeddings have at least 1 row; given 0 tokens")
        if int(tokens.max()) >= vocab:
            raise InvalidRequest(f"token ids are below {vocab}; given {int(tokens.max())}")
        return self._tables.embeds.put(Embedding(len(tokens), tokens=tokens.astype("<u4").tobytes()))

    def put(self, values: F32) -> int:
        hidden = self._models.get("").info.hidden_size
        if len(values) == 0 or len(values) % hidden:
            raise InvalidRequest(f"embeddings are rows of {hidden} floats, at least 1; given {len(values)} floats")
        if not np.isfinite(values).all():
            raise InvalidRequest("embeddings are finite; given NaN or inf")
        return self._tables.embeds.put(Embedding(len(values) // hidden, values=values.astype("<f4").tobytes()))

    def size(self, embed: int) -> int:
        return self._tables.embeds.get(embed).num_rows

    def values(self, queue: int, embed: int) -> int:
        found, embedding = self._tables.queues.get(queue), self._tables.embeds.get(embed)
        num_bytes = embedding.num_rows * self._models.get("").info.hidden_size * 4
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
            self._outbox.check_room()
            what = f"the values of {embedding.num_rows} rows have"
            ticket = self._outbox.results.open_result(Kind.FLOATS, num_bytes, what).number
            self._outbox.stage(EmbedLookup(ticket, found, embedding.tokens))
        return ticket

    def free(self, embeds: U32) -> None:
        self._tables.embeds.free(embeds.tolist())
