"""The shapes that the kernels between matrix products are checked over, on whatever device runs them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pieray.kernels import decoder_torch
from pieray.kernels.dispatch import LayerOps

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: of the largest value: two roundings of the dtype
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
ROWS = (0, 1, 5)


def errors(ops: LayerOps, device: torch.device) -> Iterator[tuple[str, torch.dtype, float]]:
    """(case, dtype, largest difference from decoder_torch over the largest value) of every case."""
    for dtype in DTYPES:
        for case in (_norms, _gates, _rotations):
            for name, got, want in case(ops, device, dtype):
                assert got.shape == want.shape
                assert got.dtype is want.dtype is dtype
                worst = (
                    (got.float() - want.float()).abs().max().item() / want.float().abs().max().item()
                    if len(want)
                    else 0.0
                )
                yield f"{name} {str(dtype)[6:]}", dtype, worst


Cases = Iterator[tuple[str, torch.Tensor, torch.Tensor]]


def _normal(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


def _norms(ops: LayerOps, device: torch.device, dtype: torch.dtype) -> Cases:
    for rows in ROWS:
        for width in (24, 64, 1000):
            x, delta = _normal((rows, width), device, dtype), _normal((rows, width, 1), device, dtype)[..., 0]
            weight = _normal((width,), device, dtype)
            for name, given in (("alone", None), ("sum", delta)):
                got, want = (one.add_rms_norm(x, given, weight, 1e-6) for one in (ops, decoder_torch))
                yield f"norm, {name}, {rows} x {width}", got[1], want[1]
                yield f"norm, {name}, {rows} x {width}, sum", got[0], want[0]


def _gates(ops: LayerOps, device: torch.device, dtype: torch.dtype) -> Cases:
    for rows in ROWS:
        for width in (24, 1100):
            wide = _normal((rows, 2 * width), device, dtype) * 4
            for activation in ("silu", "gelu_tanh"):
                got, want = (one.gated(wide, activation) for one in (ops, decoder_torch))
                yield f"gate, {activation}, {rows} x {width}", got, want


def _rotations(ops: LayerOps, device: torch.device, dtype: torch.dtype) -> Cases:
    for rows in ROWS:
        for num_heads, num_kv_heads, head_dim, page_size in ((4, 2, 32, 16), (3, 1, 24, 5), (8, 8, 64, 1)):
            for has_norm in (False, True):
                num_pages = 32 // page_size + rows
                turn = torch.rand((40, head_dim // 2), generator=torch.Generator().manual_seed(3)).to(device)
                norms = (_normal((head_dim,), device, dtype), _normal((head_dim, 1), device, dtype)[:, 0].contiguous())
                slots = torch.randperm(num_pages * page_size, generator=torch.Generator().manual_seed(4))[:rows].to(
                    device
                )
                positions = (torch.arange(rows, device=device) * 7) % 40
                results = []
                for one in (ops, decoder_torch):
                    heads = _normal((rows, num_heads + 2 * num_kv_heads, head_dim), device, dtype)
                    kv = torch.zeros((num_pages, 2, num_kv_heads, page_size, head_dim), dtype=dtype, device=device)
                    one.rope_append(
                        heads, turn.cos(), turn.sin(), positions, kv, slots, norms if has_norm else None, 1e-6
                    )
                    results.append((heads[:, :num_heads].contiguous(), kv))
                name = (
                    f"rotation, {rows} rows, heads {num_heads}/{num_kv_heads} of {head_dim}, page {page_size}"
                    + ", norm" * has_norm
                )
                yield name, results[0][0], results[1][0]
                if rows:
                    yield name + ", pool", results[0][1], results[1][1]
