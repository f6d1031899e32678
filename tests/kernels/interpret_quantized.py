"""Runs the kernels of quantized products in Triton's interpreter; prints one JSON line per case.

A process of its own, as interpret.py is.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from pieray.kernels import cells, decoder_torch, decoder_triton, quantized, quantized_triton

TOLERANCE = {"int8": 1e-5, "fp8": 1e-5}
SHAPES = ((1, 64, 48), (5, 200, 33), (16, 256, 64), (40, 130, 130))


def main(part: int, parts: int) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    for index, (kind, (rows, num_in, num_out)) in enumerate((k, s) for k in quantized.DTYPES for s in SHAPES):
        if index % parts != part:
            continue
        matrix = quantized.QuantizedMatrix.of(torch.randn(num_out, num_in, generator=generator), kind)
        x = torch.randn(rows, num_in, generator=generator) * torch.logspace(-3, 3, rows)[:, None]
        values, scales = quantized_triton.quantize_rows(x, matrix.dtype)
        want_values, want_scales = quantized.quantize_rows(x, matrix.dtype)
        off = (values.float() - want_values.float()).abs() / want_values.float().abs().clamp_min(1)
        # what lies between two numbers may be rounded to the other one
        steps = float(off.max()) if kind == "fp8" else float((values.int() - want_values.int()).abs().max())
        got = quantized_triton.multiply(values, scales, matrix, torch.float32, is_interpreted=True)
        want = (values.double() * scales[:, None].double()) @ matrix.dequantized(torch.float32).double().T
        line = {
            "error": float(((got - want).norm(dim=1) / want.norm(dim=1)).max()),
            "tolerance": TOLERANCE[kind],
            "scales": float(((scales - want_scales) / want_scales).abs().max()),
            "steps": steps,
            "odd": float((off > 0).float().mean()),
        }
        print(json.dumps({"name": f"{kind} {rows} rows, {num_in} to {num_out}", **line}), flush=True)
    if part == 1:
        heads = torch.randn(3, 8, 32, generator=generator) * torch.tensor([1e-3, 1, 300])[:, None, None]
        pools = [torch.zeros(2, 2, 2, 4, 32, dtype=torch.uint8).view(cells.E4M3) for _ in range(2)]
        turn, places, slots = torch.zeros(4, 16), torch.arange(3), torch.tensor([1, 7, 4])
        for ops, pool in zip((decoder_triton, decoder_torch), pools, strict=True):
            ops.rope_append(heads.clone(), turn.cos(), turn.sin(), places, pool, slots, None, 1e-6)
        found, want = (pool.float() for pool in pools)
        is_same = bool((found.abs() == 448).any()) and torch.equal(found.abs() == 448, want.abs() == 448)
        off = (found - want).abs() / want.abs().clamp_min(2**-6)  # a NaN would not do here: the interpreter loses it
        line = {"error": float(not is_same), "tolerance": 0.0, "scales": 0.0, "steps": float(off.max()), "odd": 0.0}
        print(json.dumps({"name": "pages of E4M3", **line}), flush=True)
    if part == 0:
        x = torch.randn(3, 64)
        x[0, 5], x[1] = torch.nan, 0
        for kind, dtype in quantized.DTYPES.items():
            values, scales = quantized_triton.quantize_rows(x, dtype)
            is_right = bool(scales[0].isnan()) and float(scales[1]) == 0 and not values[1].float().any()
            print(
                json.dumps(
                    {
                        "name": f"{kind} rows that are odd",
                        "error": float(not is_right),
                        "tolerance": 0.0,
                        "scales": 0.0,
                        "steps": 0.0,
                        "odd": 0.0,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
