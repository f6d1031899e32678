"""WIT interface `embeds`: embeddings as the input of passes."""

from __future__ import annotations

from typing import cast

import numpy as np

from pieray.arrays import F32, U32
from pieray.config import Limits
from pieray.errors import InvalidRequest, PierayError, QuotaExceeded, Unsupported
from pieray.host.device.embeds import Embedding, EmbedLookup, ImageTicket, SeeImage
from pieray.host.device.outbox import Outbox
from pieray.host.models import ModelDirectory
from pieray.host.tables import HandleTables
from pieray.host.tickets import Kind, TicketTable
from pieray.messages import MAX_FRAME_BYTES
from pieray.models.image_rules import ImageRules
from pieray.texts import check_size, from_base64

MARGIN_BYTES = 1 << 20
"""Of a frame, beside the values of an embedding."""


class EmbedsHandlers:
    """Embeddings by handle; of tokens only the ids are kept."""

    def __init__(
        self,
        limits: Limits,
        models: ModelDirectory,
        tables: HandleTables,
        tickets: TicketTable,
        outbox: Outbox,
        tenant: str = "",
    ) -> None:
        self._limits = limits
        self._tenant = tenant
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

    def image(self, queue: int, image: str) -> int:
        found, info = self._tables.queues.get(queue), self._models.get("").info
        if not info.image:
            raise Unsupported(f"{info.name} ({info.architecture}) does not see images")
        check_size("message_bytes", self._limits.message_bytes, len(image), "the image given")
        data = from_base64(image)
        embeds = self._tables.embeds
        most = min(self._limits.embed_bytes - embeds.num_bytes, MAX_FRAME_BYTES - MARGIN_BYTES)
        with self._tickets.lock:
            self._outbox.check_room()
            ticket = ImageTicket(embeds)
            number = self._tickets.add(ticket)

            def seen(result: object) -> object:
                """With the lock held, once the batcher has answered."""
                if isinstance(result, PierayError):
                    return result
                embedding = Embedding.of_image(cast(list[bytes], result), info.hidden_size)
                if not ticket.is_open:
                    return None
                try:
                    ticket.embed = embeds.put(embedding)
                except QuotaExceeded as error:
                    return error
                return np.array([ticket.embed, embedding.num_rows], "<u4").tobytes()

            try:
                self._outbox.transfers.hold(number, len(data), "the image has")
            except BaseException:
                self._tickets.drop((number,))
                raise
            self._outbox.stage(SeeImage(number, found, self._tenant, data, max(most, 0), seen))
        return number

    def image_rows(self, width: int, height: int) -> int:
        info = self._models.get("").info
        rules = ImageRules.of(info.image)
        if rules is None:
            raise Unsupported(f"{info.name} ({info.architecture}) does not see images")
        return rules.rows(width, height)

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
