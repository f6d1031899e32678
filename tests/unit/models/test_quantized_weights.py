"""Weights of int8 and E4M3: near float32, the same bits in any company and by any instructions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import ragged_logits, u32

from families import make_model  # isort: skip
from pieray.errors import ModelError
from pieray.kernels.cc import library
from pieray.kernels.decoder_step_cpu import FP8, INT8_KINDS, CMatrix, int8_kinds, multiply_rows, pack, padded
from pieray.kernels.quantized import DTYPES, QuantizedMatrix, linear, product_torch
from pieray.models.arena import Arena
from pieray.models.decoder import Decoder
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.runner import ModelRunner

#: mean difference of logits from those in float32, over their mean size, of a random model
TOLERANCE = {"int8": 0.1, "fp8": 0.25}
SHAPES = ((64, 96), (204, 40), (72, 33), (8, 8), (256, 1408), (130, 100))
RNG = np.random.default_rng(3)
PROMPTS = [u32(RNG.integers(3, 96, size)) for size in (120, 70, 1, 33)]
MODEL = {"hidden_size": 204, "intermediate_size": 344, "num_attention_heads": 6, "head_dim": 24}


def needs_compiler() -> None:
    if library() is None:
        pytest.skip("no C compiler")


def random_matrix(num_in: int, num_out: int) -> torch.Tensor:
    return torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(num_in)) * num_in**-0.5


def c_matrix(matrix: QuantizedMatrix, kind: int, arena: Arena, bias: torch.Tensor | None = None) -> CMatrix:
    width = padded(matrix.shape[0])

    def wide(vector: torch.Tensor) -> int:
        return arena.take(torch.nn.functional.pad(vector, (0, width - len(vector))))

    values = matrix.values if matrix.dtype is torch.int8 else matrix.values.view(torch.uint8)
    sums = None if kind == FP8 else wide(matrix.values.sum(1, dtype=torch.int32))
    data = arena.take(pack(values, kind))
    return CMatrix(data, None if bias is None else wide(bias), *matrix.shape, kind, wide(matrix.scales), sums)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_products_have_the_same_bits_by_all_instructions(shape: tuple[int, int]) -> None:
    needs_compiler()
    matrix, arena = QuantizedMatrix.of(random_matrix(*shape), "int8"), Arena()
    bias = torch.randn(shape[1])
    for rows in (1, 2, 3, 4, 7, 16, 17, 31, 32, 33, 50, 70):
        x = torch.randn(rows, shape[0]) * torch.logspace(-3, 3, rows)[:, None]
        want = product_torch(x, matrix) + bias
        found = [
            multiply_rows(x, c_matrix(matrix, INT8_KINDS[name], arena, bias), threads)
            for name in int8_kinds()
            for threads in (1, 2)
        ]
        alone = multiply_rows(x[-1:].contiguous(), c_matrix(matrix, INT8_KINDS["c"], arena, bias))
        for one in found:
            assert torch.equal(one, found[0])
            assert torch.equal(one[-1:], alone)
            # a row that torch rounds the other way in one place differs by one step of that number
            assert ((one - want).norm(dim=1) <= 4e-3 * want.norm(dim=1)).all()
            assert (one - want).abs().median() <= 1e-5 * want.abs().median()


@pytest.mark.parametrize("shape", SHAPES)
def test_e4m3_products_are_those_of_the_dequantized_matrix(shape: tuple[int, int]) -> None:
    needs_compiler()
    plain = random_matrix(*shape)
    plain[0] *= torch.logspace(-6, 0, shape[0])  # small numbers too
    matrix, arena = QuantizedMatrix.of(plain, "fp8"), Arena()
    for rows in (1, 2, 5, 12):
        x = torch.randn(rows, shape[0])
        want = x.double() @ matrix.dequantized(torch.float32).double().T
        for found in (multiply_rows(x, c_matrix(matrix, FP8, arena)), linear(x, matrix)):
            assert torch.allclose(found.double(), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_rows_that_are_not_finite_stay_so_and_rows_of_zeros_give_zeros() -> None:
    needs_compiler()
    matrix, arena = QuantizedMatrix.of(random_matrix(64, 96), "int8"), Arena()
    for odd in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(6, 64)
        x[0, 63], x[1], x[2] = odd, 0, 1e-38
        for name in int8_kinds():
            found = multiply_rows(x, c_matrix(matrix, INT8_KINDS[name], arena))
            assert found[0].isnan().all()
            assert (found[1:3] == 0).all()
            assert found[3:].isfinite().all()
        assert linear(x, matrix)[0].isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", DTYPES)
def test_a_quantized_model_is_near_float32_and_bits_do_not_depend_on_the_batch(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    needs_compiler()
    make_model("qwen2", tmp_path, **MODEL)
    want = ragged_logits(ModelRunner.load(tmp_path, dtype="float32", num_pages=64), PROMPTS, [120, 120, 1, 120])
    runner = ModelRunner.load(tmp_path, dtype=dtype, num_pages=64, quantization=kind)
    assert isinstance(runner.decoder, CpuDecoder)
    whole = ragged_logits(runner, PROMPTS, [120, 120, 1, 120])
    for one, other in zip(whole, want, strict=True):
        assert 0 < np.abs(one - other).mean() < TOLERANCE[kind] * np.abs(other).mean()
    assert np.array_equal(ragged_logits(runner, PROMPTS[:1], [120])[0], whole[0])
    for chunks in ([1, 17, 1, 33], [40, 3, 1, 2], [19, 64, 1, 16]):
        for one, other in zip(ragged_logits(runner, PROMPTS, chunks), whole, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", DTYPES)
def test_without_a_compiler_torch_computes_the_same(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model("llama", tmp_path, head_dim=16, tie_word_embeddings=True)
    whole = ragged_logits(ModelRunner.load(tmp_path, num_pages=64, quantization=kind), PROMPTS, [120, 9, 1, 33])
    monkeypatch.setattr("pieray.models.decoder_cpu.library", lambda: None)
    runner = ModelRunner.load(tmp_path, num_pages=64, quantization=kind)
    assert isinstance(runner.decoder, Decoder)
    for one, other in zip(ragged_logits(runner, PROMPTS, [120, 9, 1, 33]), whole, strict=True):
        assert np.abs(one - other).mean() < 4e-3 * np.abs(other).mean()


def test_what_cannot_be_quantized_is_refused_by_name(tmp_path: Path) -> None:
    make_model("mixtral", tmp_path / "experts", num_local_experts=2, num_experts_per_tok=1, head_dim=16)
    with pytest.raises(ModelError, match="'int8': a mixture of experts is served unquantized alone"):
        ModelRunner.load(tmp_path / "experts", num_pages=4, quantization="int8")
    model = make_model("llama", tmp_path / "plain", head_dim=16)
    with pytest.raises(ModelError, match="quantization 'int4': supported are none, int8, fp8"):
        ModelRunner.load(tmp_path / "plain", num_pages=4, quantization="int4")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = torch.nan
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj: a matrix .* not finite"):
        ModelRunner.load(tmp_path / "plain", num_pages=4, quantization="fp8")
