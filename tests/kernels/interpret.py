"""Runs the Triton kernel over the table in Triton's interpreter; prints one JSON line per case.

A process of its own: the interpreter is chosen when triton is imported, and cannot live beside the real compiler.
"""

import json
import os
import sys
import time

os.environ["TRITON_INTERPRET"] = "1"

import torch
from attention_cases import CASES, make

from pieray.kernels.paged_attention import Variant, paged_attention, reference

SMALL = Variant(block_m=16, block_n=16, num_warps=4, num_stages=1)  # several tiles and blocks even for small shapes


def main(part: int, parts: int) -> None:
    torch.set_num_threads(1)
    for case in CASES[part::parts]:
        q, kv, meta = make(case)
        start = time.perf_counter()
        out = paged_attention(q, kv, meta, scale=0.2, window=case.window, num_splits=case.num_splits, variant=SMALL)
        seconds = time.perf_counter() - start
        wrong = (out.float() - reference(q, kv, meta, scale=0.2, window=case.window)).abs().max().item()
        print(json.dumps({"name": case.name, "error": wrong, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
