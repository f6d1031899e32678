"""Products of packed matrices in C, by each way of the processor: right, and the same for a row alone."""

from __future__ import annotations

import pytest
import torch

from pieray.kernels.cc import library
from pieray.kernels.decoder_step_cpu import PAIR_KINDS, CMatrix, kind_of, multiply_rows, pack, padded, pair_kinds
from pieray.models.arena import Arena

ROWS = (1, 2, 3, 5, 6, 7, 15, 16, 17, 31, 32, 33, 48, 49, 64, 81)


@pytest.mark.parametrize("products", [*PAIR_KINDS, "float32", "weights of float32"])
@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (31, 33), (32, 64), (33, 65), (72, 200), (256, 96)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_right_and_each_row_of_it_the_same_alone(
    products: str, num_in: int, num_out: int, has_bias: bool
) -> None:
    if library() is None:
        pytest.skip("no C compiler")
    if products in PAIR_KINDS and products not in pair_kinds():
        pytest.skip(f"this processor has no {products}")
    dtype = torch.float32 if products == "weights of float32" else torch.bfloat16
    generator = torch.Generator().manual_seed(num_in * num_out)
    matrix = torch.randn(num_out, num_in, generator=generator).to(dtype)
    bias = torch.zeros(padded(num_out))
    bias[:num_out] = torch.randn(num_out, generator=generator)
    arena, kind = Arena(), kind_of(dtype, products)
    packed = CMatrix(arena.take(pack(matrix, kind)), bias.data_ptr() if has_bias else None, num_out, num_in, kind)
    x = torch.randn(max(ROWS), num_in, generator=generator)
    alone = torch.cat([multiply_rows(x[i : i + 1].contiguous(), packed) for i in range(max(ROWS))])
    rounded = x.bfloat16() if products in PAIR_KINDS else x
    want = rounded.double() @ matrix.double().T + (bias[:num_out].double() if has_bias else 0)
    torch.testing.assert_close(alone.double(), want, rtol=1e-4, atol=1e-4)
    for rows in ROWS:
        for threads in (1, 2):
            assert torch.equal(multiply_rows(x[:rows].contiguous(), packed, threads), alone[:rows])
