"""Claim: on a CPU, products with packed weights of bfloat16 in C are as fast as torch's (oneDNN) at each shape.

GFLOP/s of one thread, of each way that `model.bf16_products` names, of int8 by each of the processor's instructions
(`model.quantization`) and of torch's own bfloat16 product, by shape and number of rows. Each product goes through
copies of its matrix that together take 64 MiB, as the layers of a model do: none is in the second cache when its turn
comes. The ways take turns; figures are the best of the rounds, for a busy neighbour makes a round slower and nothing
makes it faster. `ratio` is the first way over torch.

    python bench/products.py
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
from common import machine

from pieray.kernels.cc import library
from pieray.kernels.decoder_step_cpu import (
    INT8_KINDS,
    CMatrix,
    int8_kinds,
    kind_of,
    multiply_rows,
    pack,
    padded,
    pair_kinds,
)
from pieray.kernels.quantized import QuantizedMatrix
from pieray.models.arena import Arena

SHAPES = ((256, 1408), (768, 1280), (768, 4096), (2048, 768), (2048, 11264))
ROWS = (1, 8, 16, 32, 128, 512)
COPIES_BYTES, ROUNDS, TARGET = 64 << 20, 7, 0.9


def ways(matrix: torch.Tensor, arena: Arena, copies: int) -> dict[str, Callable[[torch.Tensor], object]]:
    """Each computes one product with each copy."""
    found: dict[str, Callable[[torch.Tensor], object]] = {}
    for products in (*pair_kinds(), "float32"):
        kind = kind_of(torch.bfloat16, products)
        packed = pack(matrix, kind)
        many = [CMatrix(arena.take(packed), None, *matrix.shape, kind) for _ in range(copies)]
        found[products] = lambda x, many=many: [multiply_rows(x, one) for one in many]
    small = QuantizedMatrix.of(matrix, "int8")
    scales, sums = (
        arena.take(torch.nn.functional.pad(one, (0, padded(len(one)) - len(one))))
        for one in (small.scales, small.values.sum(1, dtype=torch.int32))
    )
    for name in int8_kinds():
        data = pack(small.values, INT8_KINDS[name])
        kind = INT8_KINDS[name]
        many = [CMatrix(arena.take(data), None, *matrix.shape, kind, scales, sums) for _ in range(copies)]
        found[f"int8, {name}"] = lambda x, many=many: [multiply_rows(x, one) for one in many]
    plain = [matrix.clone() for _ in range(copies)]
    found["torch"] = lambda x: [torch.nn.functional.linear(x.bfloat16(), one) for one in plain]
    return found


def main() -> None:
    torch.set_num_threads(1)
    if library() is None:
        sys.exit("no C compiler")
    figures: dict[str, dict[str, float]] = {}
    ratios = []
    for num_in, num_out in SHAPES:
        generator = torch.Generator().manual_seed(num_in)
        matrix = (torch.randn(num_out, num_in, generator=generator) * num_in**-0.5).bfloat16()
        copies = max(2, COPIES_BYTES // (matrix.numel() * 2))
        arena = Arena()  # holds the copies
        calls = ways(matrix, arena, copies)
        for rows in ROWS:
            x = torch.randn(rows, num_in, generator=generator)
            best = dict.fromkeys(calls, 1e9)
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    began = time.perf_counter()
                    call(x)
                    best[name] = min(best[name], (time.perf_counter() - began) / copies)
            row = {name: round(2e-9 * rows * matrix.numel() / took, 1) for name, took in best.items()}
            row["ratio"] = round(best["torch"] / best[next(iter(calls))], 2)
            ratios.append(row["ratio"])
            figures[f"{num_in} to {num_out}, {rows} rows"] = row
            print(f"{num_in} to {num_out}, {rows} rows: {row}", flush=True)
    print(
        json.dumps(
            {
                "claim": "products with packed weights of bfloat16 in C are as fast as torch's, GFLOP/s of one thread",
                "figures": figures,
                "ratio": min(ratios),
                "target": f"{TARGET} at each shape",
                "ok": min(ratios) >= TARGET,
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
