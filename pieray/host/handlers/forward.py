"""WIT interface `forward`: passes and their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pieray.arrays import U32
from pieray.config import Limits
from pieray.errors import BadHandle, InvalidRequest, QuotaExceeded
from pieray.host.device.commands import Pass, Queue
from pieray.host.device.embeds import check_model, joined
from pieray.host.device.masks import hide_runs, mask_bytes
from pieray.host.device.model_side import ModelSides
from pieray.host.device.verify import VerifyPass, check_tree
from pieray.host.device.visibility import composed
from pieray.host.models import ModelInfo
from pieray.host.tables import HandleTables
from pieray.host.tickets import Kind, TicketTable
from pieray.messages import Distribution, Entropy, Hidden, Logits, Logprobs, Output, Sample, Sampler, size_of


class ForwardHandlers:
    """Forward passes.  What can be checked here is, so that a bad call fails at once, not in the batch."""

    def __init__(self, limits: Limits, tables: HandleTables, tickets: TicketTable, sides: ModelSides) -> None:
        self._limits = limits
        self._tables = tables
        self._tickets = tickets
        self._sides = sides
        self._lock = tickets.lock

    def forward(self, queue: int, pages: U32, kv_len: int, tokens: U32, positions: U32, mask: U32) -> int:
        return self._enqueue(self._tables.queues.get(queue), pages, kv_len, tokens, positions, mask, [])

    def forward_embeds(self, queue: int, pages: U32, kv_len: int, embeds: U32, positions: U32, mask: U32) -> int:
        found = self._tables.queues.get(queue)
        parts = [self._tables.embeds.get(handle) for handle in embeds.tolist()]
        for handle, part in zip(embeds.tolist(), parts, strict=True):
            check_model(handle, part, found)
        page_size = self._sides.of_queue(found).pages.page_size
        num_rows, room = sum(part.num_rows for part in parts), len(pages) * page_size
        if num_rows > room:
            raise InvalidRequest(f"{num_rows} rows do not fit in {len(pages)} pages, which have {room} slots")
        num_bytes = sum(len(part.values) for part in parts if not part.media)
        if num_bytes > self._limits.message_bytes:
            raise QuotaExceeded(
                f"message_bytes: the limit is {self._limits.message_bytes}; the embeddings of this "
                f"pass have {num_bytes}"
            )
        tokens, rows, media = joined(parts)
        return self._enqueue(found, pages, kv_len, tokens, positions, mask, rows, media)

    def _enqueue(
        self,
        queue: Queue,
        pages: U32,
        kv_len: int,
        tokens: U32,
        positions: U32,
        mask: U32,
        embeds: list[bytes],
        media: bytes = b"",
    ) -> int:
        side = self._sides.of_queue(queue)
        outbox, num_tokens = side.outbox, len(tokens)
        _check_tokens(side.info, tokens, int(positions.max()) if len(positions) else kv_len + num_tokens - 1)
        if len(positions) not in (0, num_tokens):
            raise InvalidRequest(f"positions: none or one per token ({num_tokens}); given {len(positions)}")
        bits = composed(side.pages.visible(pages, kv_len), num_tokens, _mask_bytes(mask, num_tokens, kv_len))
        with self._lock:
            outbox.check_room()
            ticket = self._tickets.issue(Kind.NONE)
            try:
                num_bytes = len(bits) + sum(map(len, embeds))
                outbox.transfers.hold(ticket, num_bytes, "the mask and the embeddings of this pass have")
                prepared = side.pages.stager.forward(pages, kv_len, num_tokens, is_masked=True)
            except BaseException:
                self._tickets.drop((ticket,))
                outbox.transfers.ended(ticket)
                raise
            packed = tokens.tobytes(), positions.tobytes(), bits, embeds, media
            outbox.stage(Pass(ticket, queue, prepared, kv_len, *packed))
        return ticket

    def mask_runs(self, pass_: int, row: int, runs: U32) -> None:
        found = self._open_pass(pass_, row)
        if found.looks_at_pages:
            raise InvalidRequest("a pass whose programs look at pages takes no mask")
        width = found.kv_len + found.num_tokens
        num_bytes = mask_bytes(found.num_tokens, width)
        if num_bytes > self._limits.message_bytes:
            raise QuotaExceeded(
                f"message_bytes: the limit is {self._limits.message_bytes}; the mask of this pass has {num_bytes}"
            )
        if not found.mask:
            with self._lock:
                self._sides.first.outbox.transfers.hold(pass_, num_bytes, "the mask of this pass has")
        mask = found.mask if isinstance(found.mask, bytearray) else bytearray(found.mask or b"\xff" * num_bytes)
        hide_runs(mask, row, width, runs)
        found.mask = mask

    def set_adapter(self, pass_: int, adapter: int) -> None:
        found, number = self.unsent(pass_), self._tables.adapter(adapter)
        self._sides.check_adapter(number, found.queue)
        found.adapter = number

    def verify(
        self, queue: int, pages: U32, kv_len: int, tokens: U32, drafts: U32, parents: U32, sampler: int, adapter: int
    ) -> int:
        found, spec, number = (
            self._tables.queues.get(queue),
            self._tables.sampler(sampler),
            self._tables.adapter(adapter),
        )
        self._sides.check_adapter(number, found)
        spec, side = self._sides.fitted(spec, found), self._sides.of_queue(found)
        depth = check_tree(len(drafts), parents)
        _check_tokens(side.info, tokens, kv_len + len(tokens) + depth - 1)
        _check_tokens(side.info, np.concatenate((tokens, drafts)), 0)
        seen = side.pages.visible(pages, kv_len)
        visible = b"" if seen is None else np.packbits(seen, bitorder="little").tobytes()
        with self._lock:
            side.outbox.check_room()
            ticket = self._tickets.issue(Kind.TOKENS)
            try:
                prepared = side.pages.stager.verify(pages, kv_len, len(tokens) + len(drafts), is_masked=True)
            except BaseException:
                self._tickets.drop((ticket,))
                raise
            side.outbox.stage(
                VerifyPass(
                    ticket,
                    found,
                    prepared,
                    pages=side.pages,
                    lineage=side.lineage,
                    kv_len=kv_len,
                    tokens=tokens,
                    drafts=drafts,
                    parents=parents,
                    sampler=spec,
                    adapter=number,
                    visible=visible,
                )
            )
        return ticket

    def sample(
        self, pass_: int, row: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
    ) -> int:
        found = self._open_pass(pass_, row)
        _check_finite("temperature", temperature, 0.0, math.inf)
        _check_finite("top-p", top_p, 0.0, 1.0)
        _check_finite("min-p", min_p, 0.0, 1.0)
        chain = Sampler(temperature, top_k, top_p, min_p, seed=seed)
        return self._ask(found, Kind.TOKENS, lambda ticket: Sample(row, chain, ticket))

    def sample_with(self, pass_: int, row: int, sampler: int) -> int:
        found = self._open_pass(pass_, row)
        chain = self._sides.fitted(self._tables.sampler(sampler), found.queue)
        self._count(found, size_of(chain))
        return self._ask(found, Kind.TOKENS, lambda ticket: Sample(row, chain, ticket))

    def distribution(self, pass_: int, row: int, k: int) -> int:
        found = self._open_pass(pass_, row)
        vocab = self._sides.of_queue(found.queue).info.vocab_size
        if not 1 <= k <= vocab:
            raise InvalidRequest(f"k is from 1 to {vocab}, the vocabulary; given {k}")
        return self._ask(found, Kind.DISTRIBUTION, lambda ticket: Distribution(row, k, ticket), 8 * k)

    def logprobs(self, pass_: int, row: int, tokens: U32) -> int:
        found = self._open_pass(pass_, row)
        vocab = self._sides.of_queue(found.queue).info.vocab_size
        if len(tokens) == 0 or int(tokens.max()) >= vocab:
            given = "none" if len(tokens) == 0 else str(int(tokens.max()))
            raise InvalidRequest(f"token ids, at least one, are below {vocab}; given {given}")
        self._count(found, tokens.nbytes)
        ids = tokens.tobytes()
        return self._ask(found, Kind.FLOATS, lambda ticket: Logprobs(row, ids, ticket), 4 * len(tokens))

    def logits(self, pass_: int, row: int) -> int:
        found = self._open_pass(pass_, row)
        num_bytes = 4 * self._sides.of_queue(found.queue).info.vocab_size
        return self._ask(found, Kind.FLOATS, lambda ticket: Logits(row, ticket), num_bytes)

    def entropy(self, pass_: int, row: int) -> int:
        return self._ask(self._open_pass(pass_, row), Kind.FLOATS, lambda ticket: Entropy(row, ticket))

    def hidden(self, pass_: int, row: int) -> int:
        found = self._open_pass(pass_, row)
        num_bytes = 4 * self._sides.of_queue(found.queue).info.hidden_size
        return self._ask(found, Kind.FLOATS, lambda ticket: Hidden(row, ticket), num_bytes)

    def _open_pass(self, handle: int, row: int) -> Pass:
        """A pass that can still be asked for outputs of `row`."""
        found = self.unsent(handle)
        if row >= found.num_tokens:
            raise InvalidRequest(f"rows of this pass are below {found.num_tokens}; given {row}")
        return found

    def unsent(self, handle: int) -> Pass:
        """A pass that can still be changed: its guest alone sends it, so it stays so unless the device is lost."""
        found = self._sides.first.outbox.passes.get(handle)
        if found is None and (error := self._tickets.failure(handle)) is not None:
            raise error
        if found is None and not self._tickets.is_open(handle):
            raise BadHandle(f"pass {handle} is not open")
        if found is None or found.is_sent:
            raise InvalidRequest(f"pass {handle} is sent already: ask for its outputs before waiting or flushing")
        return found

    def _count(self, found: Pass, num_bytes: int) -> None:
        """Raise QuotaExceeded when what a pass carries for its outputs would pass `Limits.message_bytes` (or
        `pass_bytes`, with what else is under way)."""
        limit = self._limits.message_bytes
        if found.output_bytes + num_bytes > limit:
            raise QuotaExceeded(
                f"message_bytes: the limit is {limit}; the outputs of this pass have "
                f"{found.output_bytes}, one more has {num_bytes}"
            )
        with self._lock:
            self._sides.first.outbox.transfers.hold(found.ticket, num_bytes, "the lists of this pass have")
        found.output_bytes += num_bytes

    def _ask(self, found: Pass, kind: Kind, output: Callable[[int], Output], num_bytes: int = 0) -> int:
        """A ticket for an output whose value will have `num_bytes` (0: a few).  Raises QuotaExceeded."""
        with self._lock:
            return self._sides.of_queue(found.queue).outbox.results.ask(found, kind, output, num_bytes)


def _check_tokens(info: ModelInfo, tokens: U32, last: int) -> None:
    """Raise InvalidRequest unless there are tokens, of the vocabulary, and `last` is a position of the model."""
    if len(tokens) == 0:
        raise InvalidRequest("a pass runs at least 1 token; given 0")
    if int(tokens.max()) >= info.vocab_size:
        raise InvalidRequest(f"token ids are below {info.vocab_size}; given {int(tokens.max())}")
    if last >= info.max_context:
        raise InvalidRequest(f"positions are below {info.max_context}, the model's context; given {last}")


def _check_finite(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or math.isinf(value):
        raise InvalidRequest(f"{name} is a finite number from {low} to {high}; given {value}")


def _mask_bytes(mask: U32, num_tokens: int, kv_len: int) -> bytes:
    """The bytes of a packed mask, cut to its bits; raises InvalidRequest naming the words it must have."""
    if len(mask) == 0:
        return b""
    num_bits = num_tokens * (kv_len + num_tokens)
    if len(mask) != -(-num_bits // 32):
        raise InvalidRequest(
            f"a mask of {num_tokens} x {kv_len + num_tokens} bits takes {-(-num_bits // 32)} words; given {len(mask)}"
        )
    return mask.astype("<u4", copy=False).tobytes()[: -(-num_bits // 8)]
