"""From what a step runs to one ragged batch: rows as columns, then items; plain numpy until the tensors are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pieray.arrays import F32, I32, I64, U8, U32
from pieray.errors import InvalidRequest, PierayError
from pieray.kernels.meta import AttentionMeta
from pieray.kernels.sample_cpu import CHOICE
from pieray.messages import Sampler
from pieray.models.config import ModelConfig
from pieray.models.kv_pool import KvPool
from pieray.models.lora import LoraAdapter, LoraSegment, segments_of

if TYPE_CHECKING:
    from pieray.models.pass_programs import PassPrograms
    from pieray.models.tensor_programs import ProgramInstance

CPU = torch.device("cpu")
PLACE_SIZE = 4
"""Numbers that say where an embedding stands: see `Embeddings`."""


@dataclass(slots=True)
class ForwardItem:
    """One sequence's share of a step: n new tokens after `kv_len` valid ones.

    `pages` are physical page ids in order, enough for kv_len + n tokens.  `mask` is bits [n, kv_len + n], row-major,
    little-endian within a byte, 1 = may attend, ANDed with causality unless `causal` is False.  `positions` feed the
    rotary embedding only; causality goes by order.  `rows`, in [0, n) and ascending, are those whose logits are wanted.
    `adapter` is added to the weights, for this item alone.  `embeds`, if any, are rows in [0, n), each once, and their
    embeddings, float32 [len(rows), hidden], which stand in place of those of their tokens; `places` says where those of
    images stand, see `Embeddings`.  `counters` make the draws
    behind its tokens unique to their places; None: each token's number in the sequence, `kv_len` and up.  `start` is
    the number of its first token in the pass whose rows its outputs count.  `programs` run in the pass; `draws` are
    those that samplers of its outputs name, by number.
    """

    pages: U32
    kv_len: int
    tokens: U32
    positions: U32
    mask: bytes | None = None
    rows: list[int] = field(default_factory=list)
    causal: bool = True
    adapter: LoraAdapter | None = None
    embeds: tuple[U32, F32] | None = None
    counters: U32 | None = None
    start: int = 0
    places: I32 | None = None
    programs: Sequence[ProgramInstance] = ()
    draws: Mapping[int, ProgramInstance] = field(default_factory=dict)


@dataclass(slots=True)
class DecodeRows:
    """R sequences that run one token each and draw the next one, as columns, a row for each.

    A row's `pages`, of which `kv_len` + 1 tokens need the first ones, are followed by any others of the pool, say 0.
    Rows of one adapter lie side by side.  The columns may be views of a table that changes from step to step.
    """

    tokens: U32  # [R]
    positions: I64  # [R]
    kv_lens: I64  # [R]
    pages: U32  # [R, W]
    choices: npt.NDArray[np.void]  # [R], CHOICE of kernels/sample_cpu.py
    samplers: dict[int, Sampler] = field(default_factory=dict)  # of rows with a bias or a mask; in order of rows
    masks: dict[int, bytes] = field(default_factory=dict)  # what else restricts the draw of a row, as Sampler.allowed
    scored: I64 = field(default_factory=lambda: np.zeros(0, np.int64))  # rows whose log-probabilities are wanted
    adapters: list[tuple[LoraAdapter, int, int]] = field(default_factory=list)  # each of rows [first, last)
    draws: dict[int, Mapping[int, ProgramInstance]] = field(default_factory=dict)  # of rows, those their samplers name
    native: Any = field(default=None, init=False)  # what a decoder has made of the columns: where they lie

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, kept: I64) -> DecodeRows:
        """These rows alone, in order."""
        place = {row: index for index, row in enumerate(kept.tolist())}
        adapters = [(one, *np.searchsorted(kept, (first, last)).tolist()) for one, first, last in self.adapters]
        return DecodeRows(
            self.tokens[kept],
            self.positions[kept],
            self.kv_lens[kept],
            self.pages[kept],
            self.choices[kept],
            {place[row]: one for row, one in self.samplers.items() if row in place},
            {place[row]: one for row, one in self.masks.items() if row in place},
            np.flatnonzero(np.isin(kept, self.scored)),
            [one for one in adapters if one[1] < one[2]],
            {place[row]: one for row, one in self.draws.items() if row in place},
        )


NO_ROWS = DecodeRows(
    np.zeros(0, np.uint32),
    np.zeros(0, np.int64),
    np.zeros(0, np.int64),
    np.zeros((0, 0), np.uint32),
    np.zeros(0, CHOICE),
)


@dataclass(slots=True)
class Embeddings:
    """Embeddings that a batch reads in place of its tokens' own."""

    rows: torch.Tensor  # int64 [E], indices into T
    values: torch.Tensor  # float32 [E, hidden], contiguous
    places: torch.Tensor | None = None
    """int32 [E, PLACE_SIZE], None: as tokens stand.  What is to be added to the position of a row for its temporal
    position, its height and its width; and to the positions of all that comes behind it."""


@dataclass(slots=True)
class RaggedBatch:
    """A step's tensors, on one device: T tokens of B items, R rows of logits."""

    tokens: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T]
    slots: torch.Tensor  # int64 [T], page * page_size + offset
    rows: torch.Tensor  # int64 [R], indices into T
    attention: AttentionMeta
    adapters: list[LoraSegment] = field(default_factory=list)
    embeds: Embeddings | None = None
    hidden: torch.Tensor | None = None  # float32 [R, hidden]: the decoder writes the rows behind the final norm here
    logits: torch.Tensor | None = None  # [R, vocab]: where a decoder that replays its steps writes them
    programs: PassPrograms | None = None


def validate_item(item: ForwardItem, config: ModelConfig, pool: KvPool) -> None:
    """Raise InvalidRequest, naming the limit and the value given, if the item cannot be computed."""
    num_tokens = len(item.tokens)
    total = item.kv_len + num_tokens
    room = len(item.pages) * pool.page_size
    if item.kv_len < 0 or total > room:
        raise InvalidRequest(
            f"{item.kv_len} cached and {num_tokens} new tokens need {total} slots; "
            f"{len(item.pages)} pages of {pool.page_size} hold {room}"
        )
    if len(item.positions) != num_tokens:
        raise InvalidRequest(f"{len(item.positions)} positions given for {num_tokens} tokens")
    if num_tokens:
        _check_below("token", item.tokens, config.vocab_size, "vocabulary")
        _check_below("position", item.positions, config.max_position, "context")
    if len(item.pages):
        _check_below("page", item.pages, pool.num_pages, "pool")
    if item.mask is not None and len(item.mask) != (num_tokens * total + 7) // 8:
        raise InvalidRequest(
            f"a mask of {num_tokens} x {total} bits takes {(num_tokens * total + 7) // 8} bytes, given {len(item.mask)}"
        )
    if item.embeds is not None:
        _check_embeds(item.embeds, num_tokens, config.hidden_size)
        if item.places is not None and item.places.shape != (len(item.embeds[0]), PLACE_SIZE):
            raise InvalidRequest(
                f"places of {len(item.embeds[0])} embeddings are {PLACE_SIZE} numbers for each; "
                f"given {list(item.places.shape)}"
            )
    if any(not 0 <= row < num_tokens for row in item.rows):
        raise InvalidRequest(f"rows {item.rows} reach outside of {num_tokens} tokens")


def _check_embeds(embeds: tuple[U32, F32], num_tokens: int, hidden: int) -> None:
    rows, values = embeds
    if len(np.unique(rows)) != len(rows) or int(rows.max(initial=0)) >= num_tokens:
        raise InvalidRequest(f"rows of embeddings are distinct and below {num_tokens}; given {rows.tolist()[:8]}")
    if values.shape != (len(rows), hidden):
        raise InvalidRequest(f"{len(rows)} embeddings are {len(rows)} x {hidden} floats; given {list(values.shape)}")
    if not np.isfinite(values).all():
        raise InvalidRequest("embeddings are finite; given NaN or inf")


def are_valid(items: Sequence[ForwardItem], config: ModelConfig, pool: KvPool) -> bool:
    """Whether `validate_item` would pass all of them, from one look at the arrays; masks and embeddings take a closer
    one: False."""
    if any(item.mask is not None or item.embeds is not None for item in items):
        return False
    if any(len(item.positions) != len(item.tokens) for item in items):
        return False
    if any(item.kv_len < 0 or item.kv_len + len(item.tokens) > len(item.pages) * pool.page_size for item in items):
        return False
    return all(
        array.view(np.uint64).max(initial=0) < limit  # what is negative counts as huge
        for array, limit in (
            (_concat([item.tokens for item in items]), config.vocab_size),
            (_concat([item.positions for item in items]), config.max_position),
            (_concat([item.pages for item in items]), pool.num_pages),
        )
    )


def row_errors(rows: DecodeRows, config: ModelConfig, pool: KvPool) -> dict[int, PierayError]:
    """The rows that cannot be computed, and why."""
    limits = (
        ("token", rows.tokens, config.vocab_size, "vocabulary"),
        ("position", rows.positions, config.max_position, "context"),
        ("page", rows.pages.max(1, initial=0), pool.num_pages, "pool"),
        ("kv_len", rows.kv_lens, rows.pages.shape[1] * pool.page_size, "slots"),
    )
    return {
        row: InvalidRequest(f"{name} {values[row]} is outside the {what} of {limit}")
        for name, values, limit, what in limits
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit
        for row in np.flatnonzero((values < 0) | (values >= limit)).tolist()
    }


def _check_below(name: str, values: U32, limit: int, what: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        raise InvalidRequest(f"{name} {high if high >= limit else low} is outside the {what} of {limit}")


def build_batch(
    items: Sequence[ForwardItem], page_size: int, device: torch.device = CPU, rows: DecodeRows | None = None
) -> RaggedBatch:
    """Lay out valid rows and items (see `validate_item`) side by side, rows first, in the order given."""
    lead = NO_ROWS if rows is None else rows
    num_rows, width = len(lead), int(lead.kv_lens.max(initial=-1)) // page_size + 1
    q_lens = np.array([1] * num_rows + [len(item.tokens) for item in items], np.int64)
    kv_before = np.concatenate((lead.kv_lens, [item.kv_len for item in items])).astype(np.int64)
    num_pages = np.array([width] * num_rows + [0] * len(items), np.int64)
    num_pages[num_rows:] = -(-(kv_before + q_lens)[num_rows:] // page_size)
    qo_indptr, page_indptr = _indptr(q_lens), _indptr(num_pages)
    item_pages = (item.pages[:count] for item, count in zip(items, num_pages[num_rows:].tolist(), strict=True))
    pages = _concat([lead.pages[:, :width].reshape(-1), *item_pages])
    owner = np.repeat(np.arange(len(q_lens)), q_lens)
    index = kv_before[owner] + np.arange(len(owner)) - qo_indptr[owner]
    slots = pages[page_indptr[owner] + index // page_size] * page_size + index % page_size
    starts = qo_indptr[num_rows:]
    wanted = [start + row for start, item in zip(starts.tolist(), items, strict=False) for row in item.rows]
    mask, mask_indptr = _masks(items, num_rows)
    kv_lens = kv_before + q_lens
    causal = np.ones(len(q_lens), np.int32)
    causal[num_rows:] = [item.causal for item in items]
    ints = _to_device(device, np.int32, qo_indptr, page_indptr, pages, kv_lens, causal)
    attention = AttentionMeta(
        qo_indptr=ints[0],
        page_indptr=ints[1],
        pages=ints[2],
        kv_lens=ints[3],
        causal=ints[4],
        q_lens=q_lens.tolist(),
        max_kv_len=int(kv_lens.max(initial=0)),
        mask=None if mask is None else torch.from_numpy(mask).to(device),
        mask_indptr=None if mask_indptr is None else torch.from_numpy(mask_indptr).to(device),
    )
    longs = _to_device(
        device,
        np.int64,
        _concat([lead.tokens, *(item.tokens for item in items)]),
        _concat([lead.positions, *(item.positions for item in items)]),
        slots,
        np.concatenate((np.arange(num_rows), wanted)),
    )
    adapters = [LoraSegment(adapter, first, last, first, last) for adapter, first, last in lead.adapters]
    adapters += segments_of([(item.adapter, len(item.tokens), len(item.rows)) for item in items], num_rows)
    embeds = _embeddings(items, starts, device)
    return RaggedBatch(longs[0], longs[1], longs[2], longs[3], attention, adapters, embeds)


def _embeddings(items: Sequence[ForwardItem], starts: I64, device: torch.device) -> Embeddings | None:
    given = [
        (start, *item.embeds, item.places) for start, item in zip(starts.tolist(), items, strict=False) if item.embeds
    ]
    if not given:
        return None
    rows = np.concatenate([start + rows.astype(np.int64) for start, rows, _, _ in given])
    values = np.concatenate([values for _, _, values, _ in given]).astype(np.float32, copy=False)
    found = Embeddings(torch.from_numpy(rows).to(device), torch.from_numpy(values).to(device))
    if any(places is not None for *_, places in given):
        plain = [np.zeros((len(rows), PLACE_SIZE), np.int32) if own is None else own for _, rows, _, own in given]
        found.places = torch.from_numpy(np.concatenate(plain)).to(device)
    return found


def _indptr(lengths: I64) -> I64:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))


def _concat(arrays: Sequence[U32 | I64]) -> I64:
    return np.concatenate([np.zeros(0, np.int64), *arrays]).astype(np.int64)


def _masks(items: Sequence[ForwardItem], num_before: int) -> tuple[U8 | None, I32 | None]:
    if all(item.mask is None for item in items):
        return None, None
    sizes = [0 if item.mask is None else len(item.mask) for item in items]
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    indptr = np.full(num_before + len(items), -1, np.int32)
    indptr[num_before:] = np.where([item.mask is None for item in items], -1, starts)
    return np.frombuffer(bytearray(b"".join(item.mask or b"" for item in items)) or bytearray(1), np.uint8), indptr


def _to_device(device: torch.device, dtype: type[np.signedinteger], *arrays: object) -> list[torch.Tensor]:
    """The arrays as tensors of `dtype`: on a GPU they share one buffer, so that a step pays for one transfer, not five.

    Each starts on a multiple of 16 elements: Triton compiles a kernel anew for pointers of another alignment.
    """
    parts = [np.ascontiguousarray(array, dtype) for array in arrays]
    if device == CPU:
        return [torch.from_numpy(part) for part in parts]
    starts = np.concatenate(([0], np.cumsum([-(-len(part) // 16) * 16 for part in parts])))
    joined = np.zeros(int(starts[-1]), dtype)
    for part, start in zip(parts, starts.tolist(), strict=False):
        joined[start : start + len(part)] = part
    tensor = torch.from_numpy(joined).to(device)
    return [tensor[start : start + len(part)] for part, start in zip(parts, starts.tolist(), strict=False)]
