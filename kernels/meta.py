"""What every kernel of a kind takes: the shape of a ragged attention call, the columns of draws."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class AttentionMeta:
    """B requests in one call; request b owns query rows [qo_indptr[b], qo_indptr[b + 1]) of q [T, num_heads, head_dim].

    Its keys lie in order in pages[page_indptr[b] : page_indptr[b + 1]]; `kv_lens[b]` of them are valid, those of this
    call's rows included, so that row i sits at slot `kv_lens[b] - q_len + i`.  Causality and windows go by that order.

    A mask is bits [q_len, kv_len], row-major, little-endian within a byte, 1 = may attend; the request's bits start at
    byte `mask_indptr[b]` of `mask`, or -1 for no mask.  It is ANDed with causality unless `causal[b]` is 0.
    All index tensors are int32 on the device of q; `q_lens` is kept on the host for planning.
    """

    qo_indptr: torch.Tensor  # [B + 1]
    page_indptr: torch.Tensor  # [B + 1]
    pages: torch.Tensor  # [sum of pages]
    kv_lens: torch.Tensor  # [B]
    causal: torch.Tensor  # [B], 0 or 1
    q_lens: list[int]
    max_kv_len: int
    mask: torch.Tensor | None = None  # uint8
    mask_indptr: torch.Tensor | None = None  # [B]
    plans: dict[tuple[int, int], object] = field(default_factory=dict)  # a kernel's own, kept for the layers of a step

    @property
    def num_requests(self) -> int:
        return len(self.q_lens)

    @property
    def max_q_len(self) -> int:
        return max(self.q_lens, default=0)


@dataclass(slots=True)
class DrawColumns:
    """What C draws go by, on the device of the logits."""

    temperatures: torch.Tensor  # float32 [C]; 0: the most likely token
    top_ps: torch.Tensor  # float64 [C]; 1 and more: off
    log_min_ps: torch.Tensor  # float32 [C], logarithms of min_p; -inf: off
    top_ks: torch.Tensor  # int32 [C]; 0: off
    uniforms: torch.Tensor  # float64 [C], in [0, 1)
