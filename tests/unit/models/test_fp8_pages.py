"""Pages of E4M3: half the bytes of bfloat16, logits within a tolerance, moved byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, HOSTED, Sequence, all_logits, fork_difference, make_model, ragged_logits, u32

from pieray.errors import ModelError
from pieray.kernels.cc import library
from pieray.kernels.cells import as_bits, to_cells
from pieray.kernels.dispatch import attention
from pieray.kernels.meta import AttentionMeta
from pieray.kernels.paged_attention import reference
from pieray.messages import Logits
from pieray.models.batch import ForwardItem
from pieray.models.decoder import Decoder
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.kv_pool import KvPool
from pieray.models.runner import ModelRunner

#: mean difference of logits from those over pages of float32, over their mean size, of a random model
TOLERANCE = 0.12
RNG = np.random.default_rng(3)
PROMPTS = [u32(RNG.integers(3, 96, size)) for size in (120, 70, 1, 33)]
MODELS = ("qwen3", "mistral, window 8", "gemma2", "llama with biases")


def load(folder: Path, dtype: str = "float32", **settings: Any) -> ModelRunner:
    runner = ModelRunner.load(folder, dtype=dtype, num_pages=64, **{"kv_dtype": "fp8", **settings})
    assert runner.dtype == dtype
    return runner


def test_cells_are_the_nearest_and_saturate() -> None:
    x = torch.tensor(
        [0.0, 449, -1e9, 448, 464, 2**-10, 3 * 2**-10, 2**-6 - 2**-10, 17, 19, torch.inf, -torch.inf, torch.nan]
    )
    found = to_cells(x, torch.float8_e4m3fn).float()
    want = [0, 448, -448, 448, 448, 0, 2**-8, 2**-6, 16, 20, torch.nan, torch.nan, torch.nan]
    assert torch.equal(found.nan_to_num(-1), torch.tensor(want).nan_to_num(-1))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_near_those_of_plain_pages_and_do_not_depend_on_the_batch(name: str, tmp_path: Path) -> None:
    model_type, changes = FAMILIES[name]
    make_model(model_type, tmp_path, **changes)
    want = ragged_logits(load(tmp_path, kv_dtype="auto"), PROMPTS, [120, 120, 1, 120])
    for dtype in ("float32", "bfloat16"):
        runner = load(tmp_path, dtype)
        assert isinstance(runner.decoder, CpuDecoder) == (library() is not None)
        whole = ragged_logits(runner, PROMPTS, [120, 120, 1, 120])
        for one, other in zip(whole, want, strict=True):
            assert 1e-3 < np.abs(one - other).mean() / np.abs(other).mean() < TOLERANCE
        if library() is None:
            continue
        assert np.array_equal(ragged_logits(runner, PROMPTS[:1], [120])[0], whole[0])
        for chunks in ([1, 17, 1, 33], [40, 3, 1, 2]):
            for one, other in zip(ragged_logits(runner, PROMPTS, chunks), whole, strict=True):
                assert np.array_equal(one, other)


@pytest.mark.parametrize("way", ["C", "torch", "transformers"])
def test_what_is_written_are_the_nearest_numbers(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys and values of the first layer are those of a pool of float32, rounded; by all decoders."""
    if way == "C" and library() is None:
        pytest.skip("no C compiler")
    model_type, changes = HOSTED["gemma"] if way == "transformers" else ("qwen2", {"head_dim": 16})
    make_model(model_type, tmp_path, **changes)
    if way == "torch":
        monkeypatch.setattr("pieray.models.decoder_cpu.library", lambda: None)
    cells = []
    for kv_dtype in ("auto", "fp8"):
        runner = load(tmp_path, kv_dtype=kv_dtype)
        assert isinstance(runner.decoder, Decoder) == (way == "torch")
        runner.step([Sequence(runner, 0, 16).item(PROMPTS[0])], [[]])
        cells.append(runner.pool.layers[0])
    assert torch.equal(as_bits(to_cells(cells[0], torch.float8_e4m3fn)), as_bits(cells[1]))


def test_all_numbers_are_read_as_they_are() -> None:
    """Attention over a pool that holds every byte there is, with each of its numbers as a value."""
    pages = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    for head_dim in (8, 32, 72):
        layer = torch.zeros(2, 2, 1, 16, head_dim, dtype=torch.uint8).view(torch.float8_e4m3fn)
        finite = pages.float()[pages.float().isfinite()]
        numbers = finite.repeat(-(-32 * head_dim // len(finite)))[: 32 * head_dim].view(2, 1, 16, head_dim)
        layer[:, 1] = numbers.to(torch.float8_e4m3fn)
        int32 = {"dtype": torch.int32}
        for slot in range(32):
            mask = np.packbits(np.arange(32) == slot, bitorder="little")
            meta = AttentionMeta(
                torch.tensor([0, 1], **int32),
                torch.tensor([0, 2], **int32),
                torch.tensor([0, 1], **int32),
                torch.tensor([32], **int32),
                torch.tensor([0], **int32),
                [1],
                32,
                torch.from_numpy(mask),
                torch.tensor([0], **int32),
            )
            q = torch.randn(1, 2, head_dim)
            found = attention(q, layer, meta)
            assert torch.equal(found[0, 0], numbers[slot // 16, 0, slot % 16])
            assert torch.allclose(found, reference(q, layer, meta, scale=head_dim**-0.5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_value_that_is_not_finite_stays_so(dtype: str, tmp_path: Path) -> None:
    make_model("llama", tmp_path, head_dim=16)
    runner = load(tmp_path, dtype)
    sequence = Sequence(runner, 0, 4)
    runner.step([sequence.item(PROMPTS[3])], [[]])
    runner.pool.bits[:, int(sequence.pages[0]), :, :, 5] = 0x7F
    (found,) = runner.step([ForwardItem(sequence.pages, 33, u32([7]), u32([33]))], [[Logits(0)]])
    assert isinstance(found, ModelError) or isinstance(found[0], ModelError)


def test_pages_are_forked_swapped_and_exported_byte_for_byte(tmp_path: Path) -> None:
    make_model("llama", tmp_path, head_dim=16)
    runner = load(tmp_path, swap_bytes=1 << 20)
    assert fork_difference(runner) == 0
    sequence = Sequence(runner, 40, 4)
    item = sequence.item(PROMPTS[1][:50])
    runner.step([item], [all_logits(item)])
    pages, slots, others = np.arange(40, 44), np.array([2, 7, 3, 4]), np.array([10, 9, 8, 50])
    held = runner.read_pages(pages)
    assert len(held) == 4 * KvPool.page_nbytes(runner.config, 16, torch.float8_e4m3fn) == 4 * 3 * 2 * 2 * 16 * 16
    runner.swap_out(pages, slots)
    runner.write_pages(pages, bytes(len(held)))
    assert not any(runner.read_pages(pages))
    runner.swap_in(slots, others)
    assert runner.read_pages(others) == held
    runner.write_pages(pages, held)
    assert runner.read_pages(pages) == held
    assert KvPool.page_nbytes(runner.config, 16, torch.bfloat16) == 2 * len(held) // 4


def test_a_budget_of_bytes_holds_four_times_the_pages_of_float32(tmp_path: Path) -> None:
    make_model("llama", tmp_path, head_dim=16)
    plain, small = (
        ModelRunner.load(tmp_path, dtype="float32", kv_bytes=1 << 20, kv_dtype=kind).pool for kind in ("auto", "fp8")
    )
    assert small.num_pages // 4 == plain.num_pages
    assert small.nbytes <= 1 << 20
    with pytest.raises(ModelError, match="kv_dtype 'int8': supported are auto, fp8"):
        ModelRunner.load(tmp_path, num_pages=4, kv_dtype="int8")
