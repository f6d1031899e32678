"""What lies between the matrix products of a decoder layer, a Triton kernel each: norm, rotation, gate.

A layer is a dozen elementwise operations; on a GPU each is a launch, and at small batches launches are all that a step
costs.  decoder_torch.py is the definition.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (the body of a Triton kernel is not Python)

from __future__ import annotations

import torch
import triton
import triton.language as tl

GATED_BLOCK = 1024
HEADS_PER_PROGRAM = 4


@triton.jit
def add_rms_norm_kernel(
    x_ptr,  # [T, width]
    delta_ptr,  # [T, width]; not read unless HAS_DELTA
    weight_ptr,  # [width]
    sum_ptr,  # [T, width]; not written unless HAS_DELTA
    out_ptr,  # [T, width]
    eps,
    width,
    HAS_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    is_column = column < width
    at = row * width + column
    x = tl.load(x_ptr + at, mask=is_column, other=0.0).to(tl.float32)
    if HAS_DELTA:
        x = (x + tl.load(delta_ptr + at, mask=is_column, other=0.0).to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, x, mask=is_column)
        x = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=is_column)


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta, its norm times weight) of x, delta [T, width], contiguous; the sum is rounded to the dtype of x.

    Without a delta the sum is x itself.
    """
    num_rows, width = x.shape
    total = x if delta is None else torch.empty_like(x)
    out = torch.empty_like(x)
    if num_rows:
        block = triton.next_power_of_2(width)
        add_rms_norm_kernel[(num_rows,)](
            x,
            x if delta is None else delta,
            weight,
            total,
            out,
            eps,
            width,
            HAS_DELTA=delta is not None,
            BLOCK=block,
            num_warps=max(1, min(16, block // 256)),
        )
    return total, out


def add_rms_norm_bytes(num_rows: int, width: int, itemsize: int, *, has_delta: bool) -> int:
    """Bytes moved at least."""
    return (num_rows * width * (4 if has_delta else 2) + width) * itemsize


@triton.jit
def gated_kernel(wide_ptr, out_ptr, width, IS_GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = column < width
    gate = tl.load(wide_ptr + row * 2 * width + column, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(wide_ptr + row * 2 * width + width + column, mask=is_column, other=0.0).to(tl.float32)
    exponent = -gate
    if IS_GELU:  # gelu by tanh is gate * sigmoid(2 sqrt(2 / pi) (gate + 0.044715 gate^3))
        exponent = -1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    gated = (gate / (1.0 + tl.exp(exponent))).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * width + column, (gated * up).to(out_ptr.dtype.element_ty), mask=is_column)


def gated(wide: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """[T, width] of wide [T, 2 * width], contiguous: the gates, then what they gate; by "silu" or "gelu_tanh"."""
    num_rows, width = wide.shape[0], wide.shape[1] // 2
    out = torch.empty((num_rows, width), dtype=wide.dtype, device=wide.device)
    if num_rows:
        grid = num_rows, triton.cdiv(width, GATED_BLOCK)
        gated_kernel[grid](wide, out, width, IS_GELU=activation == "gelu_tanh", BLOCK=GATED_BLOCK, num_warps=4)
    return out


def gated_bytes(num_rows: int, width: int, itemsize: int) -> int:
    """Bytes moved at least."""
    return 3 * num_rows * width * itemsize


@triton.jit
def _cells(x, dtype: tl.constexpr):
    """As `cells.to_cells`."""
    if dtype == tl.float8e4nv:
        x = x.to(tl.float32)
        x += x - x  # what is infinite becomes NaN
        x = tl.where(x > 448.0, 448.0, tl.where(x < -448.0, -448.0, x))
    return x.to(dtype)


@triton.jit
def rope_append_kernel(
    heads_ptr,  # [T, H + 2 * KV_H, D]
    cos_ptr,  # [positions, D / 2] float32
    sin_ptr,
    positions_ptr,  # [T] int64
    slots_ptr,  # [T] int64
    kv_ptr,  # [num_pages, 2, KV_H, PAGE, D]
    q_weight_ptr,  # [D]
    k_weight_ptr,
    eps,
    H: tl.constexpr,
    KV_H: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,  # half a head
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    column = tl.arange(0, BLOCK_C)
    is_q = head < H
    is_turned = head < H + KV_H
    is_column = column < D // 2
    is_cell = (head < H + 2 * KV_H)[:, None] & is_column[None, :]
    at = token * (H + 2 * KV_H) * D + head[:, None] * D + column[None, :]
    dtype = heads_ptr.dtype.element_ty
    first = tl.load(heads_ptr + at, mask=is_cell, other=0.0).to(tl.float32)
    second = tl.load(heads_ptr + at + D // 2, mask=is_cell, other=0.0).to(tl.float32)
    v_first, v_second = first, second
    if HAS_NORM:
        scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D + eps)[:, None]
        q_first = tl.load(q_weight_ptr + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        q_second = tl.load(q_weight_ptr + D // 2 + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        k_first = tl.load(k_weight_ptr + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        k_second = tl.load(k_weight_ptr + D // 2 + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        first = (first * scale * tl.where(is_q[:, None], q_first, k_first)).to(dtype).to(tl.float32)
        second = (second * scale * tl.where(is_q[:, None], q_second, k_second)).to(dtype).to(tl.float32)
    position = tl.load(positions_ptr + token)
    cos = tl.load(cos_ptr + position * (D // 2) + column, mask=is_column, other=0.0)[None, :]
    sin = tl.load(sin_ptr + position * (D // 2) + column, mask=is_column, other=0.0)[None, :]
    turned_first = tl.where(is_turned[:, None], first * cos - second * sin, v_first).to(dtype)
    turned_second = tl.where(is_turned[:, None], second * cos + first * sin, v_second).to(dtype)
    to_q = is_cell & is_q[:, None]
    tl.store(heads_ptr + at, turned_first, mask=to_q)
    tl.store(heads_ptr + at + D // 2, turned_second, mask=to_q)
    slot = tl.load(slots_ptr + token)
    is_value = (head >= H + KV_H).to(tl.int64)
    kv_head = head - H - is_value * KV_H
    cell = (((slot // PAGE * 2 + is_value) * KV_H + kv_head) * PAGE + slot % PAGE) * D
    to_pool = is_cell & (head >= H)[:, None]
    tl.store(kv_ptr + cell[:, None] + column[None, :], _cells(turned_first, kv_ptr.dtype.element_ty), mask=to_pool)
    at = kv_ptr + cell[:, None] + D // 2 + column[None, :]
    tl.store(at, _cells(turned_second, kv_ptr.dtype.element_ty), mask=to_pool)


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
    """Rotate the queries of `heads` [T, num_heads + 2 * num_kv_heads, head_dim] (contiguous: queries, keys, values) in
    place; write its keys, rotated, and values to `slots` [T] (int64) of `kv_layer`
    [num_pages, 2, num_kv_heads, page_size, head_dim].

    cos and sin are float32 [positions, head_dim / 2], `positions` int64 [T].  `norms`, if any, are the weights
    [head_dim] of the norm of queries and of keys, which comes first.
    """
    num_tokens, num_all, head_dim = heads.shape
    num_kv_heads, page_size = kv_layer.shape[2], kv_layer.shape[3]
    if not num_tokens:
        return
    q_weight, k_weight = norms or (cos, cos)
    rope_append_kernel[(num_tokens, triton.cdiv(num_all, HEADS_PER_PROGRAM))](
        heads,
        cos,
        sin,
        positions,
        slots,
        kv_layer,
        q_weight,
        k_weight,
        eps,
        H=num_all - 2 * num_kv_heads,
        KV_H=num_kv_heads,
        PAGE=page_size,
        D=head_dim,
        HAS_NORM=norms is not None,
        BLOCK_H=HEADS_PER_PROGRAM,
        BLOCK_C=triton.next_power_of_2(head_dim // 2),
        num_warps=2,
    )


def rope_append_bytes(num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes moved at least: all heads read and written once."""
    return 2 * num_tokens * (num_heads + 2 * num_kv_heads) * head_dim * itemsize
