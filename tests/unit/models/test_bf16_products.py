"""Weights of bfloat16 by each of the processor's ways: near float32, the same bits in any company, each to be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, Sequence, all_logits, make_model, ragged_logits, u32
from loras import as_bytes, random_lora

from pieray.errors import ModelError
from pieray.kernels.cc import library
from pieray.kernels.decoder_step_cpu import PAIR_KINDS, pair_kinds
from pieray.messages import Logits, Sample, Sampler
from pieray.models.adapter_file import AdapterFile
from pieray.models.batch import DecodeRows, ForwardItem
from pieray.models.cores import BYTES_PER_THREAD, decoder_threads
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.runner import ModelRunner
from pieray.models.sampler import choices_of

PRODUCTS = (*PAIR_KINDS, "float32")
RNG = np.random.default_rng(3)
PROMPTS = [u32(RNG.integers(3, 96, size)) for size in (120, 70, 1, 33)]
WIDE = {"hidden_size": 204, "intermediate_size": 344, "num_attention_heads": 6, "max_position_embeddings": 512}
#: what no tile holds whole: dimensions, heads, groups, windows, biases
SHAPES = {
    "head_dim 16": ("qwen3", {"head_dim": 16}),
    "head_dim 72, three heads for one": ("llama", {"head_dim": 72, **WIDE}),
    "head_dim 128, each its own": ("llama", {"head_dim": 128, **WIDE, "num_key_value_heads": 6}),
    "windows and biases": ("qwen2", {**FAMILIES["qwen2, windows"][1], "head_dim": 16}),
    "biases everywhere": ("llama", {**FAMILIES["llama with biases"][1], "head_dim": 40}),
}


@pytest.fixture(params=PRODUCTS)
def products(request: pytest.FixtureRequest) -> str:
    if library() is None:
        pytest.skip("no C compiler")
    if request.param not in (*pair_kinds(), "float32"):
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


def load(folder: Path, products: str, page_size: int = 16, threads: int = 1) -> ModelRunner:
    runner = ModelRunner.load(
        folder, dtype="bfloat16", num_pages=64, page_size=page_size, threads=threads, bf16_products=products
    )
    assert isinstance(runner.decoder, CpuDecoder)
    assert runner.decoder.products == products
    return runner


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_each_way_is_near_float32_and_bits_do_not_depend_on_the_batch(
    shape: str, products: str, tmp_path: Path
) -> None:
    model_type, changes = SHAPES[shape]
    make_model(model_type, tmp_path, **changes)
    exact = ModelRunner.load(tmp_path, dtype="float32", num_pages=64)
    want = ragged_logits(exact, PROMPTS, [120, 120, 1, 120])
    runner = load(tmp_path, products)
    whole = ragged_logits(runner, PROMPTS, [120, 120, 1, 120])
    for one, other in zip(whole, want, strict=True):
        assert np.abs(one - other).mean() < 0.03 * np.abs(other).mean()
    alone = ragged_logits(runner, PROMPTS[:1], [120])[0]
    assert np.array_equal(alone, whole[0])
    for chunks in ([1, 17, 1, 33], [40, 3, 1, 2], [19, 64, 1, 16]):
        for one, other in zip(ragged_logits(runner, PROMPTS, chunks), whole, strict=True):
            assert np.array_equal(one, other)


@pytest.mark.slow
def test_rows_of_any_number_threads_and_pages_have_the_same_logits(products: str, tmp_path: Path) -> None:
    make_model("llama", tmp_path, head_dim=32, **WIDE)
    found = []
    for page_size, threads in ((16, 1), (4, 2), (32, 1)):
        runner = load(tmp_path, products, page_size, threads)
        per_row = 64 // page_size
        num_rows = runner.pool.num_pages // per_row
        pages = np.arange(num_rows * per_row, dtype=np.uint32).reshape(num_rows, per_row)
        for n in (num_rows, 1):
            items = [ForwardItem(pages[i], 0, PROMPTS[0][:40], u32(range(40))) for i in range(n)]
            first = runner.step(items, [[Sample(-1, Sampler())] for _ in items])
            kv = np.full(n, 40)
            tokens = u32([one[0] for one in first])  # type: ignore[index]
            rows = DecodeRows(tokens, kv.copy(), kv, pages[:n], choices_of([Sampler()] * n, kv.tolist()))
            runner.decode(rows, [], [])
            assert isinstance(runner.decoder, CpuDecoder)
            logits = runner.decoder.row_logits(n).numpy()
            found += [logits[0].copy(), logits[-1].copy()]
    torch.set_num_threads(1)
    for one in found[1:]:
        assert np.array_equal(one, found[0])


@pytest.mark.slow
def test_many_rows_go_together_as_alone(products: str, tmp_path: Path) -> None:
    make_model("llama", tmp_path, head_dim=32, **WIDE)
    runner = load(tmp_path, products)
    prompt = u32(RNG.integers(3, 96, 400))  # more than one block of tokens
    sequence = Sequence(runner, 0, 26)
    item = sequence.item(prompt)
    (whole,) = runner.step([item], [all_logits(item)])
    for row in (0, 15, 16, 255, 256, 399):
        other = Sequence(runner, 30, 26)
        part = other.item(prompt[: row + 1])
        ((last,),) = runner.step([part], [[Logits(-1)]])  # type: ignore[misc]
        assert np.array_equal(last, whole[row])  # type: ignore[index]


def test_a_value_that_is_hidden_may_be_anything(products: str, tmp_path: Path) -> None:
    make_model("llama", tmp_path, head_dim=16)
    runner = load(tmp_path, products)
    sequence = Sequence(runner, 0, 4)
    runner.step([sequence.item(PROMPTS[3])], [[]])
    page, offset = int(sequence.pages[0]), 5
    hidden = np.ones((1, 34), bool)
    hidden[0, offset] = False
    mask = np.packbits(hidden, axis=None, bitorder="little").tobytes()
    start = sequence.kv_len

    def last(mask: bytes | None) -> Any:
        result = runner.step([ForwardItem(sequence.pages, start, u32([7]), u32([start]), mask=mask)], [[Logits(0)]])[0]
        return result[0] if isinstance(result, list) else result

    want = last(mask)
    runner.pool.data[:, page, :, :, offset] = torch.nan
    assert np.array_equal(last(mask), want)
    assert isinstance(last(None), ModelError)


@pytest.mark.slow
def test_adapters_of_some_tokens_of_a_long_step(products: str, tmp_path: Path) -> None:
    make_model("llama", tmp_path, head_dim=16)
    runner = load(tmp_path, products)
    adapter = runner.read_adapter(AdapterFile("a", as_bytes(random_lora(tmp_path, 4))), 1 << 30)
    prompts = [u32(RNG.integers(3, 96, 100)) for _ in range(6)]

    def run(which: list[int]) -> list[np.ndarray]:
        items = [Sequence(runner, 8 * i, 8).item(prompts[i]) for i in which]
        for i, item in zip(which, items, strict=True):
            item.adapter = adapter if i >= 2 else None
        return [np.stack(one) for one in runner.step(items, [all_logits(item) for item in items])]  # type: ignore[arg-type]

    together = run([0, 1, 2, 3, 4, 5])  # 600 tokens: the adapter begins in the first block and ends in the third
    for i in range(6):
        assert np.array_equal(run([i])[0], together[i])


def test_what_a_processor_lacks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("no C compiler")
    make_model("llama", tmp_path, head_dim=16)
    with pytest.raises(ModelError, match="bf16_products 'fast': supported are auto, amx, avx512_bf16, float32"):
        ModelRunner.load(tmp_path, dtype="bfloat16", num_pages=4, bf16_products="fast")
    monkeypatch.setattr("pieray.models.decoder_cpu.pair_kinds", list)
    with pytest.raises(ModelError, match="bf16_products 'amx': this processor has float32"):
        ModelRunner.load(tmp_path, dtype="bfloat16", num_pages=4, bf16_products="amx")
    runner = ModelRunner.load(tmp_path, dtype="bfloat16", num_pages=4)
    assert runner.decoder.products == "float32"  # type: ignore[union-attr]
    exact = ModelRunner.load(tmp_path, dtype="float32", num_pages=4, bf16_products="amx")  # of no meaning there
    assert exact.decoder.products == "float32"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("weight_bytes", "num_cores", "threads"),
    [(10 << 20, 16, 1), (160 << 20, 2, 1), (160 << 20, 16, 5), (2 << 30, 16, 8), (BYTES_PER_THREAD, 1, 1)],
)
def test_threads_are_half_of_the_cores_as_far_as_the_weights_are_worth_them(
    weight_bytes: int, num_cores: int, threads: int
) -> None:
    assert decoder_threads(weight_bytes, num_cores) == threads
