"""The native decoder against transformers: each family, alone and in ragged batches, in C and in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, PROMPTS, expected_logits, fork_difference, largest_difference, make_model, ragged_logits

from pieray.models.config import ModelConfig
from pieray.models.decoder import Decoder
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.kv_pool import KvPool
from pieray.models.runner import ModelRunner
from pieray.models.weights import load_weights


def runners(folder: Path, page_size: int, max_context: int = 0) -> list[ModelRunner]:
    """The same model with the torch decoder and, where there is a compiler, the C one."""
    config = ModelConfig.from_folder(folder, max_context)
    weights = load_weights(folder, config, torch.float32, "cpu")
    decoders: list[Any] = [Decoder(config, weights)]
    if CpuDecoder.can_run(config, weights):
        decoders.append(CpuDecoder(config, weights))
    return [ModelRunner(config, one, KvPool(config, 64, page_size, torch.float32, "cpu")) for one in decoders]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers_alone_and_in_ragged_batches(name: str, tmp_path: Path) -> None:
    model_type, changes = FAMILIES[name]
    expected = expected_logits(make_model(model_type, tmp_path, **changes))
    for runner in runners(tmp_path, page_size=4):
        assert largest_difference(runner, expected) < 1e-4
        assert fork_difference(runner) < 1e-6


@pytest.mark.slow
def test_chunks_and_batches_do_not_change_a_bit(tmp_path: Path) -> None:
    make_model("qwen3", tmp_path, head_dim=16)
    runner = runners(tmp_path, page_size=16)[-1]
    if not isinstance(runner.decoder, CpuDecoder):
        pytest.skip("no C compiler")
    one = ragged_logits(runner, PROMPTS[:1], [26])[0]
    for chunks in ([1, 23, 1, 9], [11, 2, 1, 3], [26, 1, 1, 1]):
        assert np.array_equal(ragged_logits(runner, PROMPTS, chunks)[0], one)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(dtype: str, tmp_path: Path) -> None:
    make_model("llama", tmp_path, head_dim=16)
    exact, rounded = (ModelRunner.load(tmp_path, dtype=name, num_pages=64) for name in ("float32", dtype))
    want, got = (ragged_logits(runner, PROMPTS[:2], [26, 5]) for runner in (exact, rounded))
    for one, other in zip(want, got, strict=True):
        assert np.abs(one - other).max() < 0.06 * np.abs(one).max()


@pytest.mark.slow
def test_sharded_weights_load_as_whole_ones(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    whole, shards = (ModelRunner.load(tmp_path / name, num_pages=64) for name in ("whole", "shards"))
    assert np.array_equal(ragged_logits(whole, PROMPTS[:1], [26])[0], ragged_logits(shards, PROMPTS[:1], [26])[0])
