"""Paged attention in vectorised torch: for CPUs without a C compiler, and for devices without a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pieray.kernels.cells import as_bits
from pieray.kernels.meta import AttentionMeta


@dataclass(frozen=True, slots=True)
class _Scoring:
    """From products of queries and keys to weights; see `dispatch.attention`."""

    scale: float
    softcap: float
    sinks: torch.Tensor | None


def paged_attention_torch(
    q: torch.Tensor,
    kv_layer: torch.Tensor,
    meta: AttentionMeta,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `dispatch.attention`: pure decode in one padded gather, anything else one request at a time."""
    scoring = _Scoring(scale, softcap, sinks)
    if meta.num_requests > 1 and set(meta.q_lens) == {1}:
        return _gathered(q, kv_layer, meta, scoring, window)
    out = torch.zeros_like(q)
    page_indptr, kv_lens = meta.page_indptr.tolist(), meta.kv_lens.tolist()
    start = 0
    for request, q_len in enumerate(meta.q_lens):
        if q_len:
            pages = meta.pages[page_indptr[request] : page_indptr[request + 1]]
            may = visible(meta, request, q_len, kv_lens[request], window)
            rows = _attend(q[None, start : start + q_len], kv_layer, pages[None], may[None], scoring)
            out[start : start + q_len] = rows[0]
        start += q_len
    return out


def _gathered(
    q: torch.Tensor, kv_layer: torch.Tensor, meta: AttentionMeta, scoring: _Scoring, window: int
) -> torch.Tensor:
    page_size = kv_layer.shape[3]
    num_pages = -(-meta.max_kv_len // page_size)
    column = torch.arange(num_pages, device=q.device)[None]
    held = column < (meta.page_indptr[1:] - meta.page_indptr[:-1])[:, None]
    pages = meta.pages[torch.where(held, meta.page_indptr[:-1, None] + column, 0)]
    slot = torch.arange(num_pages * page_size, device=q.device)[None]
    may = slot < meta.kv_lens[:, None]
    if window:
        may &= slot >= meta.kv_lens[:, None] - window
    if meta.mask is not None and meta.mask_indptr is not None:
        byte = (meta.mask_indptr[:, None] + slot // 8).clamp(0, len(meta.mask) - 1)
        may &= (meta.mask_indptr[:, None] < 0) | (meta.mask[byte] >> (slot % 8) & 1).bool()
    return _attend(q[:, None], kv_layer, pages, may[:, None], scoring)[:, 0]


def _attend(
    q: torch.Tensor, kv_layer: torch.Tensor, pages: torch.Tensor, may: torch.Tensor, scoring: _Scoring
) -> torch.Tensor:
    """q [B, Q, num_heads, D], pages [B, P], may [B, Q, K <= P * page_size] -> [B, Q, num_heads, D], in float32."""
    batch, q_len, num_heads, head_dim = q.shape
    num_kv_heads = kv_layer.shape[2]
    both = (
        as_bits(kv_layer)[pages]
        .view(kv_layer.dtype)
        .permute(2, 0, 3, 1, 4, 5)
        .reshape(2, batch, num_kv_heads, -1, head_dim)
    )
    k, v = both[:, :, :, : may.shape[-1]].float().unbind(0)
    v = v.masked_fill(~may.any(1)[:, None, :, None], 0)  # what no row may see can be NaN, and 0 * NaN is not 0
    grouped = q.float().view(batch, q_len, num_kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    hidden = ~may[:, None, None].expand(-1, num_kv_heads, num_heads // num_kv_heads, -1, -1).flatten(2, 3)
    scores = grouped @ k.transpose(-1, -2) * scoring.scale
    if scoring.softcap:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    scores = scores.masked_fill(hidden, -torch.inf)
    if scoring.sinks is not None:
        sinks = (
            scoring.sinks.float()
            .view(1, num_kv_heads, -1, 1)
            .expand(batch, -1, -1, q_len)
            .reshape(*scores.shape[:3], 1)
        )
        weights = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1).masked_fill(hidden, 0)
    rows = (weights @ v).view(batch, num_kv_heads, -1, q_len, head_dim).permute(0, 3, 1, 2, 4)
    return rows.reshape(q.shape).to(q.dtype)


def visible(meta: AttentionMeta, request: int, q_len: int, kv_len: int, window: int) -> torch.Tensor:
    """Which slots each row of a request may attend, as bool [q_len, kv_len]."""
    device = meta.pages.device
    slot = torch.arange(kv_len, device=device)[None]
    own = torch.arange(kv_len - q_len, kv_len, device=device)[:, None]
    may = torch.ones(q_len, kv_len, dtype=torch.bool, device=device)
    if int(meta.causal[request]):
        may &= slot <= own
    if window:
        may &= slot > own - window
    first = -1 if meta.mask_indptr is None else int(meta.mask_indptr[request])
    if meta.mask is not None and first >= 0:
        packed = meta.mask[first : first + (q_len * kv_len + 7) // 8]
        bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=device) & 1
        may &= bits.flatten()[: q_len * kv_len].view(q_len, kv_len).bool()
    return may
