"""Runs the Triton kernel over the table in Triton's interpreter; prints one JSON line per case.

A process of its own: the interpreter is chosen when triton is imported, and cannot live beside the real compiler.
"""

import json
import os
import sys
import time

os.environ["TRITON_INTERPRET"] = "1"

import torch
from attention_cases import CASES, make, scoring

from pieray.kernels.meta import AttentionMeta
from pieray.kernels.paged_attention import Variant, paged_attention, reference
from pieray.kernels.paged_attention_torch import visible

SMALL = Variant(block_m=16, block_n=16, num_warps=4, num_stages=1)  # several tiles and blocks even for small shapes


def poisoned(kv: torch.Tensor, meta: AttentionMeta, window: int) -> torch.Tensor:
    """With NaN in every slot that a mask hides from all rows: it may hold what another tenant left."""
    if meta.mask is None:
        return kv
    kv, page_size = kv.clone(), kv.shape[3]
    for request, q_len in enumerate(meta.q_lens):
        kv_len, first = int(meta.kv_lens[request]), int(meta.page_indptr[request])
        for slot in (~visible(meta, request, q_len, kv_len, window).any(0)).nonzero().flatten().tolist():
            kv[meta.pages[first + slot // page_size], :, :, slot % page_size] = torch.nan
    return kv


def main(part: int, parts: int) -> None:
    torch.set_num_threads(1)
    for case in CASES[part::parts]:
        q, kv, meta = make(case)
        start = time.perf_counter()
        held, options = poisoned(kv, meta, case.window), {"num_splits": case.num_splits, "variant": SMALL}
        out = paged_attention(q, held, meta, **scoring(case), **options)
        seconds = time.perf_counter() - start
        wrong = (out.float() - reference(q, kv, meta, **scoring(case))).abs().max().item()
        print(json.dumps({"name": case.name, "error": wrong, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
