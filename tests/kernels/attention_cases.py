"""The table of shapes that every attention kernel is checked over, and how a case becomes tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pieray.kernels.cells import E4M3, to_cells
from pieray.kernels.meta import AttentionMeta


@dataclass(frozen=True)
class Case:
    """`requests` are (q_len, kv_len); `hidden` the share of mask bits that are 0, None for no mask at all."""

    name: str
    requests: tuple[tuple[int, int], ...]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    page_size: int = 16
    window: int = 0
    hidden: float | None = None
    causal: tuple[int, ...] = ()  # per request, all 1 if empty
    dtype: torch.dtype = torch.float32
    num_splits: int = 1
    softcap: float = 0.0
    has_sinks: bool = False
    has_fp8_pages: bool = False
    seed: int = 0


MIXED = ((7, 7), (1, 33), (0, 5), (1, 1), (5, 21), (16, 40))
DECODE = ((1, 33), (1, 1), (1, 90), (1, 16))
BASE = Case("mixed", MIXED)
CASES = (
    *(replace(BASE, name=f"page size {size}", page_size=size) for size in (1, 5, 16, 32)),
    *(replace(BASE, name=f"group of {g}", num_heads=2 * g) for g in (1, 3, 4, 7)),
    *(replace(BASE, name=f"head_dim {d}", head_dim=d, requests=((3, 9), (1, 20))) for d in (24, 64, 80, 128)),
    *(replace(BASE, name=f"window {w}", window=w) for w in (1, 8, 17)),
    replace(BASE, name="mask", hidden=0.5),
    replace(BASE, name="mask that hides most", hidden=0.97),
    replace(BASE, name="mask and window", hidden=0.3, window=9),
    replace(BASE, name="mask alone", hidden=0.5, causal=(0, 0, 0, 0, 0, 0)),
    replace(BASE, name="causal for some", causal=(1, 0, 1, 0, 0, 1)),
    replace(BASE, name="nothing but empty rows", requests=((0, 4), (0, 0), (1, 1))),
    replace(BASE, name="decode", requests=DECODE),
    replace(BASE, name="decode in 3 splits", requests=DECODE, num_splits=3),
    replace(BASE, name="decode in splits, mask, window", requests=DECODE, num_splits=4, hidden=0.6, window=40),
    replace(BASE, name="softcap", softcap=1.5),
    replace(BASE, name="softcap, window and mask", softcap=0.7, window=9, hidden=0.3),
    replace(BASE, name="sinks", has_sinks=True),
    replace(BASE, name="sinks and a mask that hides most", has_sinks=True, hidden=0.97),
    replace(BASE, name="decode, sinks, softcap", requests=DECODE, has_sinks=True, softcap=2.0),
    replace(BASE, name="decode in 3 splits, sinks, window", requests=DECODE, num_splits=3, has_sinks=True, window=40),
    replace(BASE, name="bfloat16, sinks, softcap", dtype=torch.bfloat16, has_sinks=True, softcap=2.0),
    replace(BASE, name="float16", dtype=torch.float16),
    replace(BASE, name="bfloat16", dtype=torch.bfloat16),
    replace(BASE, name="bfloat16, mask", dtype=torch.bfloat16, hidden=0.5),
    replace(BASE, name="bfloat16, splits", requests=DECODE, dtype=torch.bfloat16, num_splits=2),
    replace(BASE, name="pages of E4M3", has_fp8_pages=True),
    replace(BASE, name="pages of E4M3, mask and window", has_fp8_pages=True, hidden=0.3, window=9),
    replace(BASE, name="pages of E4M3, bfloat16, splits", has_fp8_pages=True, dtype=torch.bfloat16, num_splits=2),
)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def scoring(case: Case, device: str = "cpu") -> dict[str, Any]:
    """The named arguments of attention that a case asks for."""
    sinks = torch.linspace(-2, 3, case.num_heads, device=device) if case.has_sinks else None
    return {"scale": 0.2, "window": case.window, "softcap": case.softcap, "sinks": sinks}


def make(case: Case) -> tuple[torch.Tensor, torch.Tensor, AttentionMeta]:
    """(q, kv_layer, meta) with scattered pages; every page that no request owns is NaN."""
    rng = np.random.default_rng(case.seed)
    counts = [-(-kv_len // case.page_size) for _, kv_len in case.requests]
    num_pages = sum(counts) + 3
    owned = rng.permutation(num_pages)[: sum(counts)]
    kv = torch.from_numpy(
        rng.standard_normal((num_pages, 2, case.num_kv_heads, case.page_size, case.head_dim), dtype=np.float32)
    )
    kv[np.setdiff1d(np.arange(num_pages), owned)] = torch.nan
    q_lens = [q_len for q_len, _ in case.requests]
    q = torch.from_numpy(rng.standard_normal((sum(q_lens), case.num_heads, case.head_dim), dtype=np.float32))
    mask, mask_indptr = _masks(case, rng)
    meta = AttentionMeta(
        qo_indptr=_ints([0, *np.cumsum(q_lens)]),
        page_indptr=_ints([0, *np.cumsum(counts)]),
        pages=_ints(owned),
        kv_lens=_ints([kv_len for _, kv_len in case.requests]),
        causal=_ints(case.causal or [1] * len(q_lens)),
        q_lens=q_lens,
        max_kv_len=max(kv_len for _, kv_len in case.requests),
        mask=mask,
        mask_indptr=mask_indptr,
    )
    return q.to(case.dtype), to_cells(kv, E4M3 if case.has_fp8_pages else case.dtype), meta


def _masks(case: Case, rng: np.random.Generator) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Every third request goes without, and the first row of each mask hides everything."""
    if case.hidden is None:
        return None, None
    packed, indptr = [np.zeros(0, np.uint8)], []
    for index, (q_len, kv_len) in enumerate(case.requests):
        if index % 3 == 2:
            indptr.append(-1)
            continue
        bits = rng.random((q_len, kv_len)) >= case.hidden
        bits[:1] = q_len == 1
        indptr.append(sum(map(len, packed)))
        packed.append(np.packbits(bits.reshape(-1), bitorder="little"))
    return torch.from_numpy(np.concatenate(packed)), _ints(indptr)


def _ints(values: object) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.int32))
