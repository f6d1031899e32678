"""What a page pool holds: floats as they are, or E4M3 (Micikevicius et al., 2022) without a scale."""

from __future__ import annotations

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0


def to_cells(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in the dtype of a pool, to the nearest; in E4M3 what is larger than 448 becomes 448, what is infinite NaN."""
    if dtype is not E4M3:
        return x.to(dtype)
    wide = x.float()
    return (wide + (wide - wide)).clamp_(-LARGEST, LARGEST).to(dtype)


def as_bits(pool: torch.Tensor) -> torch.Tensor:
    """The same memory in a dtype that torch can index on any device: bytes of E4M3, others as they are."""
    return pool.view(torch.uint8) if pool.dtype is E4M3 else pool
