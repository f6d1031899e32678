"""WIT interface `embeds`: embeddings as the input of passes."""

from __future__ import annotations

from typing import cast

import numpy as np

from pieray.arrays import F32, U32
from pieray.config import Limits
from pieray.errors import InvalidRequest, PierayError, QuotaExceeded, Unsupported
from pieray.host.device.embeds import Embedding, EmbedLookup, ImageTicket, SeeImage, check_model
from pieray.host.device.model_side import ModelSide, ModelSides
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
        self, limits: Limits, tables: HandleTables, tickets: TicketTable, sides: ModelSides, tenant: str = ""
    ) -> None:
        self._limits = limits
        self._tenant = tenant
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

    def image(self, queue: int, image: str) -> int:
        found = self._tables.queues.get(queue)
        side = self._sides.of_queue(found)
        if not side.info.image:
            raise Unsupported(f"{side.info.name} ({side.info.architecture}) does not see images")
        check_size("message_bytes", self._limits.message_bytes, len(image), "the image given")
        data = from_base64(image)
        embeds = self._tables.embeds
        most = min(self._limits.embed_bytes - embeds.num_bytes, MAX_FRAME_BYTES - MARGIN_BYTES)
        with self._tickets.lock:
            side.outbox.check_room()
            ticket = ImageTicket(embeds)
            number = self._tickets.add(ticket)

            def seen(result: object) -> object:
                """With the lock held, once the batcher has answered."""
                if isinstance(result, PierayError):
                    return result
                embedding = Embedding.of_image(cast(list[bytes], result), side.info.hidden_size, found.model)
                if not ticket.is_open:
                    return None
                try:
                    ticket.embed = embeds.put(embedding)
                except QuotaExceeded as error:
                    return error
                return np.array([ticket.embed, embedding.num_rows], "<u4").tobytes()

            try:
                side.outbox.transfers.hold(number, len(data), "the image has")
            except BaseException:
                self._tickets.drop((number,))
                raise
            side.outbox.stage(SeeImage(number, found, self._tenant, data, max(most, 0), seen))
        return number

    def image_rows(self, model: str, width: int, height: int) -> int:
        info = self._side(model).info
        rules = ImageRules.of(info.image)
        if rules is None:
            raise Unsupported(f"{info.name} ({info.architecture}) does not see images")
        return rules.rows(width, height)

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
