"""Claim: on a CPU, attention over pages by the C operator beats gathering the pages for torch.

Decode at batch 1, 8, 32 and context 128, 512: the C operator, vectorised torch, and SDPA per request on gathered pages,
on one thread, in one run.  `python bench/attention.py`; the last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from common import machine

from pieray.kernels.meta import AttentionMeta
from pieray.kernels.paged_attention import cost
from pieray.kernels.paged_attention_cpu import paged_attention_cpu
from pieray.kernels.paged_attention_torch import paged_attention_torch

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE = 8, 2, 64, 16
TARGET = 1.5  # times faster than the better torch way, geometric mean
ROUNDS = 21


def decode(batch: int, context: int) -> tuple[torch.Tensor, torch.Tensor, AttentionMeta]:
    rng = np.random.default_rng(batch * context)
    per_request = context // PAGE_SIZE
    pages = rng.permutation(batch * per_request).astype(np.int32)
    shape = (len(pages), 2, NUM_KV_HEADS, PAGE_SIZE, HEAD_DIM)
    meta = AttentionMeta(
        qo_indptr=torch.arange(batch + 1, dtype=torch.int32),
        page_indptr=torch.arange(batch + 1, dtype=torch.int32) * per_request,
        pages=torch.from_numpy(pages),
        kv_lens=torch.full((batch,), context, dtype=torch.int32),
        causal=torch.ones(batch, dtype=torch.int32),
        q_lens=[1] * batch,
        max_kv_len=context,
    )
    q = rng.standard_normal((batch, NUM_HEADS, HEAD_DIM), dtype=np.float32)
    return torch.from_numpy(q), torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)), meta


def gathered_sdpa(q: torch.Tensor, kv: torch.Tensor, meta: AttentionMeta, scale: float) -> torch.Tensor:
    rows = []
    for request in range(meta.num_requests):
        first, last = meta.page_indptr[request : request + 2].tolist()
        k, v = kv[meta.pages[first:last]].permute(1, 2, 0, 3, 4).flatten(2, 3)
        one = q[request][None, :, None]
        rows.append(F.scaled_dot_product_attention(one, k[None], v[None], scale=scale, enable_gqa=True)[0, :, 0])
    return torch.stack(rows)


def milliseconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median of each, taken in turns so that a busy neighbour slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(one), 4) for name, one in times.items()}


def main() -> None:
    torch.set_num_threads(1)
    figures, ratios = {}, []
    for batch in (1, 8, 32):
        for context in (128, 512):
            q, kv, meta = decode(batch, context)
            scale = HEAD_DIM**-0.5
            torch.testing.assert_close(paged_attention_cpu(q, kv, meta, scale=scale), gathered_sdpa(q, kv, meta, scale))
            took = milliseconds(
                {
                    "c": lambda: paged_attention_cpu(q, kv, meta, scale=scale),  # noqa: B023 (called in this round)
                    "torch": lambda: paged_attention_torch(q, kv, meta, scale=scale),  # noqa: B023
                    "sdpa": lambda: gathered_sdpa(q, kv, meta, scale),  # noqa: B023
                }
            )
            moved, operations = cost(meta, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, 4)
            took["c_gflops"] = round(operations / took["c"] / 1e6, 1)
            took["c_gbytes_per_s"] = round(moved / took["c"] / 1e6, 1)
            figures[f"batch {batch}, context {context}"] = took
            ratios.append(min(took["torch"], took["sdpa"]) / took["c"])
            print(f"batch {batch:2} context {context}: ms {took}, {ratios[-1]:.1f} times faster")
    ratio = round(statistics.geometric_mean(ratios), 2)
    claim = "paged attention in C beats gathering pages for torch on one CPU thread (decode, milliseconds)"
    line = {"claim": claim, "figures": figures, "ratio": ratio, "target": TARGET, "ok": ratio >= TARGET}
    print(json.dumps(line | {"machine": machine()}))


if __name__ == "__main__":
    main()
