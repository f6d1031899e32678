"""Ragged paged attention in Triton: prefill chunks and decode in one launch, GQA, windows, bit masks, split KV.

A program owns one tile of query rows of one request and one kv head; all query heads of that kv head share the tile,
so its keys are read once.  Decode over long contexts is split along the keys and merged by a second kernel.
The mathematics is that of FlashAttention-2 (Dao, 2023) with the split of Flash-Decoding; `reference` is the definition.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (the body of a Triton kernel is not Python)

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import triton
import triton.language as tl

from pieray.kernels.cells import as_bits
from pieray.kernels.meta import AttentionMeta
from pieray.kernels.paged_attention_torch import visible

LOG2_E = 1.4426950408889634
MIN_SLOTS_PER_SPLIT = 256
MAX_SPLITS = 32


@dataclass(frozen=True, slots=True)
class Variant:
    """Tile of query rows x slots, and how it is compiled."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


#: What ships, by (kind, padded head_dim), for elements of two bytes; float32 has smaller tiles.  On sm_90
#: each is free of spills and fits in shared memory: tests/kernels/compile_ahead.py compiles every line.  `split` is
#: decode over several programs a row.  Those of 128 without masks are the fastest of a sweep on an H200
#: (tools/gpu_check.py measures them).
VARIANTS: dict[tuple[str, int], Variant] = {
    ("decode", 64): Variant(16, 64, 4, 3),
    ("decode", 128): Variant(16, 128, 4, 2),
    ("decode", 256): Variant(16, 32, 4, 2),
    ("decode_masked", 64): Variant(16, 64, 4, 3),
    ("decode_masked", 128): Variant(16, 64, 4, 3),
    ("decode_masked", 256): Variant(16, 32, 4, 2),
    ("split", 64): Variant(16, 64, 4, 3),
    ("split", 128): Variant(16, 128, 4, 3),
    ("split", 256): Variant(16, 32, 4, 2),
    ("split_masked", 64): Variant(16, 64, 4, 3),
    ("split_masked", 128): Variant(16, 64, 4, 3),
    ("split_masked", 256): Variant(16, 32, 4, 2),
    ("prefill", 64): Variant(128, 64, 8, 2),
    ("prefill", 128): Variant(128, 128, 8, 2),
    ("prefill", 256): Variant(64, 32, 8, 1),
    ("prefill_masked", 64): Variant(64, 64, 8, 2),
    ("prefill_masked", 128): Variant(64, 32, 8, 2),
    ("prefill_masked", 256): Variant(64, 32, 8, 1),
}


@triton.jit
def _scores(q, k, UPCAST: tl.constexpr, IEEE: tl.constexpr):
    """q k^T, float32."""
    if UPCAST:
        s = tl.dot(q.to(tl.float32), tl.trans(k).to(tl.float32))
    elif IEEE:
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
    else:
        s = tl.dot(q, tl.trans(k))
    return s


@triton.jit
def _bent(s, cap):
    """cap * tanh(s / cap)."""
    return cap - 2.0 * cap / (tl.exp2(s * (2.8853900817779268 / cap)) + 1.0)


@triton.jit
def _weighted(acc, p, v, UPCAST: tl.constexpr, IEEE: tl.constexpr):
    """acc + p v, float32."""
    if UPCAST:
        acc = tl.dot(p.to(v.dtype).to(tl.float32), v.to(tl.float32), acc)
    elif IEEE:
        acc = tl.dot(p, v, acc, input_precision="ieee")
    else:
        acc = tl.dot(p.to(v.dtype), v, acc)
    return acc


@triton.jit
def paged_attention_kernel(
    q_ptr,  # [T, num_heads, D], rows q_stride apart
    kv_ptr,  # [num_pages, 2, num_kv_heads, PAGE, D], in the dtype of q or float8e4nv
    out_ptr,  # [SPLITS, T, num_heads, D]
    lse_ptr,  # [SPLITS, T, num_heads] float32, base 2
    qo_indptr_ptr,
    page_indptr_ptr,
    pages_ptr,
    kv_lens_ptr,
    causal_ptr,
    tile_request_ptr,  # [tiles]
    tile_first_ptr,  # [tiles]: first row of the tile within its request
    mask_ptr,
    mask_indptr_ptr,
    sinks_ptr,  # [num_heads] float32; not read unless HAS_SINK
    scale_log2,  # softmax scale * log2(e)
    cap_log2,  # softcap * log2(e); of no meaning unless HAS_CAP
    window,
    num_rows,  # T
    num_kv_heads,
    q_stride,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of a kv head
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SINK: tl.constexpr,
    SPLITS: tl.constexpr,
    IEEE: tl.constexpr,  # float32: no tensor cores
    UPCAST: tl.constexpr,  # the interpreter's tl.dot multiplies bfloat16 as integers
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    request = tl.load(tile_request_ptr + tile)
    first = tl.load(tile_first_ptr + tile)
    row0 = tl.load(qo_indptr_ptr + request)
    q_len = tl.load(qo_indptr_ptr + request + 1) - row0
    kv_len = tl.load(kv_lens_ptr + request)
    page0 = tl.load(page_indptr_ptr + request)
    is_causal = tl.load(causal_ptr + request) != 0
    num_heads = num_kv_heads * GROUP

    lane = tl.arange(0, BLOCK_Q * BLOCK_G)
    index = first + lane // BLOCK_G
    member = lane % BLOCK_G
    is_row = (index < q_len) & (member < GROUP)
    head = kv_head * GROUP + member
    column = tl.arange(0, BLOCK_D)
    is_column = column < D
    row = (row0 + index).to(tl.int64)
    q = tl.load(
        q_ptr + row[:, None] * q_stride + head[:, None] * D + column[None, :],
        mask=is_row[:, None] & is_column[None, :],
        other=0.0,
    )
    own = kv_len - q_len + index
    last = tl.where(is_causal, own, kv_len - 1)

    low = 0
    high = tl.where(is_causal, tl.minimum(kv_len, kv_len - q_len + first + BLOCK_Q), kv_len)
    if HAS_WINDOW:
        low = tl.maximum(0, kv_len - q_len + first - window + 1) // BLOCK_N * BLOCK_N
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(tl.maximum(high - low, 0), SPLITS), BLOCK_N) * BLOCK_N
        low = low + split * share
        high = tl.minimum(high, low + share)
    if HAS_MASK:
        mask_base = tl.load(mask_indptr_ptr + request)  # -1: this request has none
        is_masked = is_row & (index * 0 + mask_base >= 0)
        row_bit = index.to(tl.int64) * kv_len

    top = tl.full([BLOCK_Q * BLOCK_G], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_Q * BLOCK_G], tl.float32)
    if HAS_SINK:  # a score that is there before all others, and has no value
        is_first = split == 0
        sink = tl.load(sinks_ptr + head, mask=is_row, other=0.0) * 1.4426950408889634
        top = tl.where(is_first, sink, top)
        total = tl.where(is_first, total + 1.0, total)
    acc = tl.zeros([BLOCK_Q * BLOCK_G, BLOCK_D], tl.float32)
    pages = pages_ptr + page0
    plain_end = low  # slots of whole blocks that every row of the tile sees: nothing to check there
    if not HAS_MASK and not HAS_WINDOW:
        seen = tl.minimum(high, tl.where(is_causal, kv_len - q_len + first + 1, kv_len))
        plain_end = low + tl.maximum(seen - low, 0) // BLOCK_N * BLOCK_N
        for base in range(low, plain_end, BLOCK_N):
            slot = base + tl.arange(0, BLOCK_N)
            page = tl.load(pages + slot // PAGE).to(tl.int64)
            at = ((page * 2 * num_kv_heads + kv_head) * PAGE + slot % PAGE) * D
            cell = kv_ptr + at[:, None] + column[None, :]
            k = tl.load(cell) if D == BLOCK_D else tl.load(cell, mask=is_column[None, :], other=0.0)
            s = _scores(q, k.to(q.dtype), UPCAST, IEEE) * scale_log2
            if HAS_CAP:
                s = _bent(s, cap_log2)
            new_top = tl.maximum(top, tl.max(s, 1))
            p = tl.exp2(s - new_top[:, None])
            shrink = tl.exp2(top - new_top)
            total = total * shrink + tl.sum(p, 1)
            cell += num_kv_heads * PAGE * D
            v = tl.load(cell) if D == BLOCK_D else tl.load(cell, mask=is_column[None, :], other=0.0)
            acc = _weighted(acc * shrink[:, None], p, v.to(q.dtype), UPCAST, IEEE)
            top = new_top
    for base in range(plain_end, high, BLOCK_N):
        slot = base + tl.arange(0, BLOCK_N)
        is_slot = slot < high
        page = tl.load(pages + slot // PAGE, mask=is_slot, other=0).to(tl.int64)
        at = ((page * 2 * num_kv_heads + kv_head) * PAGE + slot % PAGE) * D
        cell = kv_ptr + at[:, None] + column[None, :]
        is_kv = is_slot[:, None] & is_column[None, :]
        k = tl.load(cell, mask=is_kv, other=0.0)
        s = _scores(q, k.to(q.dtype), UPCAST, IEEE) * scale_log2
        if HAS_CAP:
            s = _bent(s, cap_log2)
        may = is_slot[None, :] & (slot[None, :] <= last[:, None])
        if HAS_WINDOW:
            may = may & (slot[None, :] > own[:, None] - window)
        if HAS_MASK:
            bit = row_bit[:, None] + slot[None, :]
            byte = tl.load(mask_ptr + mask_base + (bit >> 3), mask=may & is_masked[:, None], other=255)
            may = may & (((byte.to(tl.int32) >> (bit & 7).to(tl.int32)) & 1) != 0)
        s = tl.where(may, s, -float("inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        anchor = tl.where(new_top == -float("inf"), 0.0, new_top)  # a row that sees nothing yet: 0, never NaN
        p = tl.exp2(s - anchor[:, None])
        shrink = tl.exp2(top - anchor)
        total = total * shrink + tl.sum(p, 1)
        if HAS_MASK:  # what no row may see can be NaN, and 0 * NaN is not 0
            is_kv = is_kv & (tl.max((may & is_row[:, None]).to(tl.int32), 0) != 0)[:, None]
        v = tl.load(cell + num_kv_heads * PAGE * D, mask=is_kv, other=0.0)
        acc = _weighted(acc * shrink[:, None], p, v.to(q.dtype), UPCAST, IEEE)
        top = new_top

    divisor = tl.where(total > 0, total, 1.0)
    target = (split.to(tl.int64) * num_rows + row) * num_heads + head
    out = (acc / divisor[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + target[:, None] * D + column[None, :], out, mask=is_row[:, None] & is_column[None, :])
    if SPLITS > 1:
        lse = tl.where(total > 0, top + tl.log2(divisor), -float("inf"))
        tl.store(lse_ptr + target, lse, mask=is_row)


@triton.jit
def merge_kernel(
    part_ptr,  # [SPLITS, rows, D] float32
    lse_ptr,  # [SPLITS, rows] float32, base 2
    out_ptr,  # [rows, D]
    num_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    is_row = row < num_rows
    is_cell = is_row[:, None] & (column < D)[None, :]
    top = tl.full([BLOCK_R], -float("inf"), tl.float32)
    for split in range(SPLITS):
        top = tl.maximum(top, tl.load(lse_ptr + split * num_rows + row, mask=is_row, other=-float("inf")))
    top = tl.where(top == -float("inf"), 0.0, top)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for split in range(SPLITS):
        weight = tl.exp2(tl.load(lse_ptr + split * num_rows + row, mask=is_row, other=-float("inf")) - top)
        part = tl.load(part_ptr + (split * num_rows + row)[:, None] * D + column[None, :], mask=is_cell, other=0.0)
        acc += weight[:, None] * part
        total += weight
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out_ptr + row[:, None] * D + column[None, :], out.to(out_ptr.dtype.element_ty), mask=is_cell)


def paged_attention(
    q: torch.Tensor,
    kv_layer: torch.Tensor,
    meta: AttentionMeta,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    num_splits: int | None = None,
    variant: Variant | None = None,
) -> torch.Tensor:
    """As `dispatch.attention`, on the device of q.  `num_splits` and `variant` are chosen unless given."""
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads, page_size = kv_layer.shape[2], kv_layer.shape[3]
    out = torch.empty((num_rows, num_heads, head_dim), dtype=q.dtype, device=q.device)
    if not num_rows:
        return out
    if q.stride(2) != 1 or q.stride(1) != head_dim:
        q = q.contiguous()
    group = num_heads // num_kv_heads
    block_g = triton.next_power_of_2(group)
    splits = num_splits or choose_splits(meta, num_kv_heads, block_g, window, q.device)
    chosen = variant or variant_for(meta, block_g, head_dim, splits, q.element_size())
    block_q = max(1, chosen.block_m // block_g)
    requests, firsts = _tiles(meta, block_q, q.device)
    part = out if splits == 1 else torch.empty((splits, *out.shape), dtype=torch.float32, device=q.device)
    lse = out if splits == 1 else torch.empty((splits, num_rows, num_heads), dtype=torch.float32, device=q.device)
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    paged_attention_kernel[(len(requests), num_kv_heads, splits)](
        q,
        kv_layer,
        part,
        lse,
        meta.qo_indptr,
        meta.page_indptr,
        meta.pages,
        meta.kv_lens,
        meta.causal,
        requests,
        firsts,
        meta.kv_lens if meta.mask is None else meta.mask,
        meta.kv_lens if meta.mask_indptr is None else meta.mask_indptr,
        meta.kv_lens if sinks is None else sinks.float(),
        scale * LOG2_E,
        softcap * LOG2_E,
        window,
        num_rows,
        num_kv_heads,
        q.stride(0),
        PAGE=page_size,
        D=head_dim,
        GROUP=group,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_G=block_g,
        BLOCK_Q=block_q,
        BLOCK_N=chosen.block_n,
        HAS_MASK=meta.mask is not None,
        HAS_WINDOW=window > 0,
        HAS_CAP=softcap > 0,
        HAS_SINK=sinks is not None,
        SPLITS=splits,
        IEEE=q.dtype is torch.float32,
        UPCAST=is_interpreted and q.dtype is torch.bfloat16,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    if splits > 1:
        rows = num_rows * num_heads
        merge_kernel[(triton.cdiv(rows, 4),)](
            part, lse, out, rows, D=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), SPLITS=splits, BLOCK_R=4
        )
    return out


def variant_for(meta: AttentionMeta, block_g: int, head_dim: int, splits: int, itemsize: int) -> Variant:
    """The line of VARIANTS for this batch: decode tiles as long as one tile row block holds every request's rows."""
    padded = next((size for size in (64, 128, 256) if head_dim <= size), None)
    if padded is None:
        raise ValueError(f"head_dim {head_dim} is above the largest tile, 256")
    kind = "split" if splits > 1 else "decode" if meta.max_q_len * block_g <= 16 else "prefill"
    return sized(VARIANTS[kind if meta.mask is None else f"{kind}_masked", padded], itemsize)


def sized(variant: Variant, itemsize: int) -> Variant:
    """The variant for elements of `itemsize` bytes: float32, which no tensor core multiplies, takes more registers."""
    if itemsize <= 2:
        return variant
    return replace(variant, block_m=min(variant.block_m, 32), block_n=16)


def choose_splits(meta: AttentionMeta, num_kv_heads: int, block_g: int, window: int, device: torch.device) -> int:
    """How many programs share a row's keys: enough to fill the device twice, each with work to do; a power of two.

    Only decode is split.  The count depends on the batch, so on GPUs a row's last bits do too.
    """
    span = min(meta.max_kv_len, window) if window else meta.max_kv_len
    if device.type != "cuda" or meta.max_q_len * block_g > 16 or span < 2 * MIN_SLOTS_PER_SPLIT:
        return 1
    programs = meta.num_requests * num_kv_heads
    wanted = 2 * torch.cuda.get_device_properties(device).multi_processor_count // max(1, programs)
    most = min(wanted, span // MIN_SLOTS_PER_SPLIT, MAX_SPLITS)
    return 1 << (most.bit_length() - 1) if most > 1 else 1


def _tiles(meta: AttentionMeta, block_q: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(request, first row) of each tile, made once a step."""
    key = (0, block_q)
    if key not in meta.plans:
        counts = -(-np.asarray(meta.q_lens, np.int64) // block_q)
        requests = np.repeat(np.arange(len(counts)), counts)
        firsts = (np.arange(len(requests)) - np.repeat(np.cumsum(counts) - counts, counts)) * block_q
        meta.plans[key] = tuple(torch.from_numpy(part.astype(np.int32)).to(device) for part in (requests, firsts))
    return cast(tuple[torch.Tensor, torch.Tensor], meta.plans[key])


def reference(
    q: torch.Tensor,
    kv_layer: torch.Tensor,
    meta: AttentionMeta,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition, one request and one head at a time, in float64; returns float32."""
    _, num_heads, head_dim = q.shape
    group = num_heads // kv_layer.shape[2]
    out = torch.zeros(q.shape, dtype=torch.float64)
    indptr, page_indptr, kv_lens = meta.qo_indptr.tolist(), meta.page_indptr.tolist(), meta.kv_lens.tolist()
    for request, q_len in enumerate(meta.q_lens):
        pages = meta.pages[page_indptr[request] : page_indptr[request + 1]].long()
        may = visible(meta, request, q_len, kv_lens[request], window)
        for head in range(num_heads):
            k, v = (
                as_bits(kv_layer)[pages, :, head // group]
                .view(kv_layer.dtype)
                .transpose(0, 1)
                .reshape(2, -1, head_dim)[:, : kv_lens[request]]
                .double()
            )
            scores = q[indptr[request] : indptr[request + 1], head].double() @ k.T * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            scores = scores.masked_fill(~may, -torch.inf)
            if sinks is not None:
                scores = torch.cat((scores, sinks[head].double().expand(q_len, 1)), 1)
            weights = scores.softmax(-1).nan_to_num(0)[:, : kv_lens[request]]
            out[indptr[request] : indptr[request + 1], head] = weights @ v
    return out.float()


def cost(meta: AttentionMeta, num_heads: int, num_kv_heads: int, head_dim: int, itemsize: int) -> tuple[int, int]:
    """(bytes moved at least, floating-point operations at most) of one call over one layer, windows and masks aside."""
    q_lens, kv_lens = np.asarray(meta.q_lens, np.int64), meta.kv_lens.cpu().numpy().astype(np.int64)
    causal = meta.causal.cpu().numpy() != 0
    pairs = np.where(causal, q_lens * (kv_lens - q_lens) + q_lens * (q_lens + 1) // 2, q_lens * kv_lens)
    moved = 2 * int(q_lens.sum()) * num_heads * head_dim + 2 * int(kv_lens[q_lens > 0].sum()) * num_kv_heads * head_dim
    return moved * itemsize, 4 * int(pairs.sum()) * num_heads * head_dim
