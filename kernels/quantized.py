"""Matrices of one byte a number: int8 or E4M3, with a scale for each output, and products with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

#: what `model.quantization` names -> what numbers become
DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
#: the largest number that is used of each; -128 is not, so that both signs are alike
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}

#: of a matrix that are quantized at once: in float32 they stay in the second cache
PART_NUMBERS = 1 << 18


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix [out, in] that is `values * scales[:, None]`."""

    values: torch.Tensor  # int8 or float8_e4m3fn [out, in], contiguous
    scales: torch.Tensor  # float32 [out]

    @property
    def shape(self) -> tuple[int, int]:
        num_out, num_in = self.values.shape
        return num_out, num_in

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @classmethod
    def of(cls, matrix: torch.Tensor, kind: str) -> QuantizedMatrix:
        """`matrix`, floating [out, in], as `kind` of DTYPES: each output over its largest number, to the nearest.

        Raises ValueError if it is not finite.
        """
        values = torch.empty(matrix.shape, dtype=DTYPES[kind], device=matrix.device)
        scales = torch.empty(len(matrix), device=matrix.device)
        step = max(1, PART_NUMBERS // matrix.shape[1])
        for first in range(0, len(matrix), step):  # what is computed between is in float32
            part = slice(first, first + step)
            values[part], scales[part] = quantize_rows(matrix[part], values.dtype)
        if not bool(scales.isfinite().all()):
            raise ValueError("a matrix that is to be quantized has numbers that are not finite")
        return cls(values, scales)

    @classmethod
    def cat(cls, parts: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
        """Outputs of all parts, which are of one dtype, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        values = torch.cat([part.values.view(torch.uint8) for part in parts]).view(parts[0].dtype)
        return cls(values, torch.cat([part.scales for part in parts]))

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The plain matrix."""
        return (self.values.float() * self.scales[:, None]).to(dtype)


AnyMatrix = torch.Tensor | QuantizedMatrix


def quantize_rows(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, scales float32 [n]) of x [n, width]: x is nearly values * scales.

    A row that is not finite has a scale of NaN.
    """
    scales = x.abs().amax(1).float() / LARGEST[dtype]
    is_finite = scales.isfinite()
    if not bool(is_finite.all()):
        x, scales = x.masked_fill(~is_finite[:, None], 0), scales.masked_fill(~is_finite, torch.nan)
    scaled = x.float() / scales.nan_to_num(0).clamp_min(1e-30)[:, None]
    return (scaled.round_() if dtype is torch.int8 else scaled).to(dtype), scales


def linear(x: torch.Tensor, matrix: AnyMatrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [n, in] times the matrix, + bias: [n, out] in the dtype of x.

    With int8 each row of x is rounded to int8 over its own largest number, and sums are exact: so they are the same by
    any path.  With E4M3 rows are rounded to E4M3 on CUDA, not elsewhere.
    """
    if isinstance(matrix, torch.Tensor):
        return F.linear(x, matrix, bias)
    if x.is_cuda:
        from pieray.kernels.quantized_triton import product
    else:
        product = product_torch
    found = product(x, matrix)
    return found if bias is None else found + bias


def product_torch(x: torch.Tensor, matrix: QuantizedMatrix) -> torch.Tensor:
    """`linear` without a bias, in torch."""
    if matrix.dtype is torch.int8:
        values, scales = quantize_rows(x, torch.int8)
        sums = torch._int_mm(values, matrix.values.T).float()
        return (sums * (scales[:, None] * matrix.scales)).to(x.dtype)
    return (F.linear(x.float(), matrix.values.float()) * matrix.scales).to(x.dtype)
