"""Embeddings that a guest holds by handle, and how they travel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pieray.arrays import U32
from pieray.errors import BadHandle, InvalidRequest, QuotaExceeded
from pieray.host.device.commands import Command, Queue, wire_ticket
from pieray.host.open_handles import OpenHandles
from pieray.host.tickets import Kind, Ticket
from pieray.messages import EmbedImage, EmbedTokens, Message
from pieray.pages.lineage import MEDIA_BYTES
from pieray.pages.prepared import Prepared

PLACE_SIZE = 4
"""Numbers that say where a row of an image stands: see `Embeddings` of pieray/models/batch.py."""
HANDLE_BYTES = 512
"""What a handle counts for beside its rows, so that `Limits.embed_bytes` bounds empty ones too."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Rows of tokens, looked up where they are used, or rows of values (f32 bytes)."""

    num_rows: int
    tokens: bytes = b""  # u32
    values: bytes = b""
    model: str = ""
    """Whose they are, as `Queue.model` has it."""
    places: bytes = b""  # i32 [num_rows, PLACE_SIZE], of an image's rows: as `Forward.embeds` has them
    media: bytes = b""  # of an image's rows what they are of, as `ForwardStep.media` has it

    @classmethod
    def of_image(cls, answer: Sequence[bytes], hidden_size: int, model: str) -> Embedding:
        """What `EmbedImage` is answered with."""
        values, places, digest = answer
        num_rows = len(values) // (4 * hidden_size)
        rows = np.tile(np.frombuffer(digest, "<u8"), (num_rows, 1))
        rows[:, 1] ^= np.arange(1, num_rows + 1, dtype=np.uint64)
        return cls(num_rows, values=values, places=places, media=rows.astype("<u8").tobytes(), model=model)

    @property
    def nbytes(self) -> int:
        return len(self.tokens) + len(self.values) + len(self.places) + len(self.media) + HANDLE_BYTES


class EmbedTable:
    """Embeddings of one inferlet, at most `limit` bytes of them (`Limits.embed_bytes`)."""

    def __init__(self, limit: int) -> None:
        self._opened: OpenHandles[Embedding] = OpenHandles("embedding", "embed_bytes", limit)
        self._limit = limit
        self.num_bytes = 0

    def put(self, embedding: Embedding) -> int:
        """A handle; raises QuotaExceeded."""
        if self.num_bytes + embedding.nbytes > self._limit:
            raise QuotaExceeded(
                f"embed_bytes: the limit is {self._limit}; {self.num_bytes} are held, "
                f"{embedding.nbytes} more were to be"
            )
        handle = self._opened.put(embedding)
        self.num_bytes += embedding.nbytes
        return handle

    def get(self, handle: int) -> Embedding:
        """Raises BadHandle."""
        return self._opened.get(handle)

    def free(self, handles: Sequence[int]) -> None:
        """Close handles; raises BadHandle for one that is not open, or named twice, and frees none then."""
        for handle in handles:
            self.get(handle)
        if len(set(handles)) != len(handles):
            raise BadHandle("an embedding is named twice")
        for handle in handles:
            self.num_bytes -= self._opened.pop(handle).nbytes


class EmbedLookup(Command):
    """The embeddings of tokens are asked of the batcher; answered with f32 bytes."""

    __slots__ = ("tokens",)

    def __init__(self, ticket: int, queue: Queue, tokens: bytes) -> None:
        rows = np.zeros(0, np.int64)
        super().__init__(ticket, queue, Prepared(rows, 0, [], 0, [], [], rows, [], []))  # it touches no page
        self.tokens = tokens

    def message(self, inferlet: int) -> Message:
        return EmbedTokens(wire_ticket(inferlet, self.ticket), inferlet, self.tokens)


def check_model(handle: int, embedding: Embedding, queue: Queue) -> None:
    """Raise InvalidRequest for embeddings of another model than the queue's."""
    if embedding.model != queue.model:
        mine, others = (name or "the default model" for name in (embedding.model, queue.model))
        raise InvalidRequest(f"embedding {handle} is of {mine}, and queue {queue.handle} of {others}")


class SeeImage(Command):
    """The batcher is to see an image.  `seen` turns its answer into what the ticket yields."""

    __slots__ = ("_data", "_max_bytes", "_seen", "_tenant")

    def __init__(
        self, ticket: int, queue: Queue, tenant: str, data: bytes, max_bytes: int, seen: Callable[[object], object]
    ) -> None:
        rows = np.zeros(0, np.int64)
        super().__init__(ticket, queue, Prepared(rows, 0, [], 0, [], [], rows, [], []))  # it touches no page
        self._tenant = tenant
        self._data = data
        self._max_bytes = max_bytes
        self._seen = seen

    def message(self, inferlet: int) -> Message:
        data, self._data = self._data, b""
        return EmbedImage(wire_ticket(inferlet, self.ticket), inferlet, self._tenant, data, self._max_bytes)

    def settled(self, result: object) -> object:
        return self._seen(result)


class ImageTicket(Ticket):
    """Of an image that is seen: its embedding is let go if nobody takes it."""

    __slots__ = ("_embeds", "embed")

    def __init__(self, embeds: EmbedTable) -> None:
        super().__init__(Kind.TOKENS)
        self.embed = 0
        self._embeds = embeds

    def left(self, *, is_taken: bool) -> None:
        if self.embed and not is_taken:
            self._embeds.free([self.embed])


def joined(parts: Sequence[Embedding]) -> tuple[U32, list[bytes], bytes]:
    """Token ids of all rows, 0 where there are values, `Forward.embeds`, and `ForwardStep.media`: b"" if there are
    values that are of no image."""
    tokens = np.zeros(sum(part.num_rows for part in parts), np.uint32)
    rows: list[U32] = []
    start = 0
    for part in parts:
        stop = start + part.num_rows
        if part.values:
            rows.append(np.arange(start, stop, dtype="<u4"))
        else:
            tokens[start:stop] = np.frombuffer(part.tokens, "<u4")
        start = stop
    if not rows:
        return tokens, [], b""
    seen = [part for part in parts if part.values]
    embeds = [np.concatenate(rows).tobytes(), b"".join(part.values for part in seen)]
    if any(part.places for part in seen):
        embeds.append(b"".join(part.places or bytes(4 * PLACE_SIZE * part.num_rows) for part in seen))
    if not all(part.media for part in seen):
        return tokens, embeds, b""
    return tokens, embeds, b"".join(part.media or bytes(MEDIA_BYTES * part.num_rows) for part in parts)
