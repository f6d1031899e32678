"""Products of rows with matrices of one byte a number on a GPU: rows are rounded to the same kind first, each over its
own largest number.

Few rows wait for the matrix alone and are Triton's; many go through torch's products (cuBLASLt) where shapes allow it.
Sums of int8 are exact: the same bits either way.  `quantized.product_torch` is the definition.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (the body of a Triton kernel is not Python)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pieray.kernels.quantized import LARGEST, QuantizedMatrix

FEW_ROWS = 16
"""So many rows at most are Triton's at any shape; `torch._int_mm` takes more than these alone."""
LIBRARY_MULTIPLE = 16
"""What widths must be a multiple of for torch's products."""


@triton.jit
def quantize_rows_kernel(
    x_ptr,  # [n, width]
    values_ptr,  # [n, width] int8 or float8e4nv
    scales_ptr,  # [n] float32
    width,
    x_stride,
    LARGEST: tl.constexpr,
    IS_INT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    tops = tl.zeros([BLOCK], tl.float32)
    odd = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        is_column = first + column < width
        x = tl.load(x_ptr + row * x_stride + first + column, mask=is_column, other=0.0).to(tl.float32)
        odd += x - x  # NaN where x is not finite
        tops = tl.maximum(tops, tl.abs(x))
    top = tl.max(tops, 0)
    scale = top / LARGEST
    factor = tl.where(scale > 1e-30, LARGEST / tl.maximum(top, 1e-30), 0.0)
    tl.store(scales_ptr + row, scale + tl.sum(odd, 0))
    for first in range(0, width, BLOCK):
        is_column = first + column < width
        x = tl.load(x_ptr + row * x_stride + first + column, mask=is_column, other=0.0).to(tl.float32)
        scaled = tl.minimum(tl.maximum(x * factor, -LARGEST), LARGEST)
        if IS_INT:  # added to a float it rounds to nearest
            scaled = (scaled + 12582912.0) - 12582912.0
        tl.store(values_ptr + row * width + first + column, scaled.to(values_ptr.dtype.element_ty), mask=is_column)


@triton.jit
def product_kernel(
    x_ptr,  # [n, num_in] int8 or float8e4nv
    x_scales_ptr,  # [n] float32
    w_ptr,  # [num_out, num_in]
    w_scales_ptr,  # [num_out] float32
    y_ptr,  # [n, num_out]
    num_rows,
    num_out,
    num_in,
    IS_INT: tl.constexpr,
    UPCAST: tl.constexpr,  # the interpreter multiplies neither kind
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    is_row, is_output = row < num_rows, output < num_out
    x_at = x_ptr + row.to(tl.int64)[:, None] * num_in + inner[None, :]
    w_at = w_ptr + output.to(tl.int64)[None, :] * num_in + inner[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32 if IS_INT and not UPCAST else tl.float32)
    for first in range(0, num_in, BLOCK_K):
        is_inner = first + inner < num_in
        x = tl.load(x_at + first, mask=is_row[:, None] & is_inner[None, :], other=0.0)
        w = tl.load(w_at + first, mask=is_inner[:, None] & is_output[None, :], other=0.0)
        if UPCAST:
            acc += tl.dot(x.to(tl.float32), w.to(tl.float32), input_precision="ieee")
        else:
            acc = tl.dot(x, w, acc)
    scales = (
        tl.load(x_scales_ptr + row, mask=is_row, other=0.0)[:, None]
        * tl.load(w_scales_ptr + output, mask=is_output, other=0.0)[None, :]
    )
    y = (acc.to(tl.float32) * scales).to(y_ptr.dtype.element_ty)
    at = y_ptr + row.to(tl.int64)[:, None] * num_out + output[None, :]
    tl.store(at, y, mask=is_row[:, None] & is_output[None, :])


def quantize_rows(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """As `quantized.quantize_rows`, in one kernel."""
    num_rows, width = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    values = torch.empty((num_rows, width), dtype=dtype, device=x.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    if num_rows:
        quantize_rows_kernel[(num_rows,)](
            x,
            values,
            scales,
            width,
            x.stride(0),
            LARGEST=LARGEST[dtype],
            IS_INT=dtype is torch.int8,
            BLOCK=min(4096, triton.next_power_of_2(width)),
            num_warps=4,
        )
    return values, scales


def product(x: torch.Tensor, matrix: QuantizedMatrix) -> torch.Tensor:
    """x [n, in] times the matrix: [n, out] in the dtype of x."""
    values, scales = quantize_rows(x, matrix.dtype)
    num_out, num_in = matrix.shape
    if len(x) <= FEW_ROWS or num_out % LIBRARY_MULTIPLE or num_in % LIBRARY_MULTIPLE:
        return multiply(values, scales, matrix, x.dtype)
    if matrix.dtype is torch.int8:
        sums = torch._int_mm(values, matrix.values.T)
        return (sums.float() * (scales[:, None] * matrix.scales)).to(x.dtype)
    if x.dtype is not torch.bfloat16:  # scales of rows and outputs go with this one alone
        return multiply(values, scales, matrix, x.dtype)
    return torch._scaled_mm(
        values, matrix.values.T, scale_a=scales[:, None], scale_b=matrix.scales[None], out_dtype=torch.bfloat16
    )


def multiply(
    values: torch.Tensor,
    scales: torch.Tensor,
    matrix: QuantizedMatrix,
    dtype: torch.dtype,
    *,
    is_interpreted: bool = False,
) -> torch.Tensor:
    """Quantised rows [n, in] times the matrix by the kernel: `dtype` [n, out]."""
    num_rows, (num_out, num_in) = len(values), matrix.shape
    out = torch.empty((num_rows, num_out), dtype=dtype, device=values.device)
    if num_rows:
        block_m, block_n, block_k = blocks(num_rows)
        product_kernel[(triton.cdiv(num_out, block_n), triton.cdiv(num_rows, block_m))](
            values,
            scales,
            matrix.values,
            matrix.scales,
            out,
            num_rows,
            num_out,
            num_in,
            IS_INT=matrix.dtype is torch.int8,
            UPCAST=is_interpreted,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=4,
            num_stages=3,
        )
    return out


def blocks(num_rows: int) -> tuple[int, int, int]:
    """(rows, outputs, inputs) of a program's tile."""
    return (16, 64, 256) if num_rows <= FEW_ROWS else (64, 128, 128)


def product_bytes(num_rows: int, num_out: int, num_in: int, itemsize: int) -> int:
    """Bytes moved at least."""
    return num_out * num_in + num_rows * (num_in + num_out * itemsize)
