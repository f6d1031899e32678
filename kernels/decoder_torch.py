"""What lies between the matrix products of a decoder layer, in torch, on any device; it defines decoder_triton.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pieray.kernels.cells import as_bits, to_cells


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta, its norm times weight) of x, delta [T, width]; without a delta the sum is x itself.

    Root mean square norm: Zhang and Sennrich, 2019.
    """
    total = x if delta is None else x + delta
    return total, rms_norm(total, weight, eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The norm of the last dimension of x times weight, in the dtype of x; a weight of float32 is multiplied before
    the result is rounded."""
    if weight.dtype == x.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def gated(wide: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """activation(gate) * up, [T, width], of wide [T, 2 * width]: the gates, then what they gate (Shazeer, 2020).

    `activation` is "silu" or "gelu_tanh".
    """
    gate, up = wide.chunk(2, -1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")).mul_(up)


def rope_append(
    heads: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    kv_layer: torch.Tensor,
    slots: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
) -> None:
    """Rotate the queries of `heads` [T, num_heads + 2 * num_kv_heads, head_dim] (queries, keys, values) in place; write
    its keys, rotated, and its values to `slots` [T] (int64) of `kv_layer`
    [num_pages, 2, num_kv_heads, page_size, head_dim].

    cos and sin are float32 [positions, head_dim / 2], `positions` int64 [T]; halves of a head are paired (Su et al.,
    2021).  `norms`, if any, are the weights [head_dim] of the norm of queries and of keys, which comes first (Qwen3).
    """
    num_kv_heads, page_size, head_dim = kv_layer.shape[2:]
    num_heads = heads.shape[1] - 2 * num_kv_heads
    if norms is not None:
        for part, weight in ((heads[:, :num_heads], norms[0]), (heads[:, num_heads:-num_kv_heads], norms[1])):
            part.copy_(rms_norm(part, weight, eps))
    turned = heads[:, :-num_kv_heads]
    first, second = turned.chunk(2, -1)
    cos, sin = cos[positions][:, None], sin[positions][:, None]
    turned.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), -1))
    page = slots.div(page_size, rounding_mode="floor")
    states = to_cells(heads[:, num_heads:], kv_layer.dtype).view(len(heads), 2, num_kv_heads, head_dim)
    as_bits(kv_layer)[page, :, :, slots - page * page_size] = as_bits(states)
