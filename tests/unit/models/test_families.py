"""The native decoder against transformers: each family, alone and in ragged batches, in C and in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import (
    CHUNKS,
    FAMILIES,
    PROMPTS,
    Sequence,
    all_logits,
    expected_logits,
    fork_difference,
    largest_difference,
    make_model,
    ragged_logits,
)
from loras import as_bytes

from pieray.models.adapter_file import AdapterFile
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
@pytest.mark.parametrize("name", ["phi3", "gemma3", "granite", "olmo2"])
def test_adapters_equal_merged_weights_whatever_the_layers_are_made_of(name: str, tmp_path: Path) -> None:
    """Fused matrices, norms behind them, a scale of what is added."""
    model_type, changes = FAMILIES[name]
    model = make_model(model_type, tmp_path, **changes)
    modules = ("self_attn.qkv_proj", "mlp.down_proj") if name == "phi3" else ("self_attn.v_proj", "mlp.up_proj")
    pairs: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for layer in range(3):
            for module in modules:
                weight = model.get_submodule(f"model.layers.{layer}.{module}").weight
                a, b = torch.randn(3, weight.shape[1]) * 0.3, torch.randn(weight.shape[0], 3) * 0.3
                weight += b @ a
                where = f"base_model.model.model.layers.{layer}.{module}.lora_"
                pairs |= {f"{where}A.weight": a, f"{where}B.weight": b}
    want = expected_logits(model)[0]
    for runner in runners(tmp_path, page_size=4):
        adapter = runner.read_adapter(AdapterFile("one", as_bytes(pairs)), 1 << 20)
        item = Sequence(runner, 0, 8).item(PROMPTS[0])
        item.adapter = adapter
        beside = Sequence(runner, 20, 8).item(PROMPTS[1])
        logits = np.stack(runner.step([beside, item], [all_logits(beside), all_logits(item)])[1])
        assert np.abs(logits - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "granite", "olmo2", "mixtral", "qwen2_moe"])
def test_bfloat16_of_every_kind_of_layer_stays_near_float32(name: str, tmp_path: Path) -> None:
    model_type, changes = FAMILIES[name]
    expected = expected_logits(make_model(model_type, tmp_path, **changes))
    runner = ModelRunner.load(tmp_path, dtype="bfloat16", num_pages=64, page_size=4)
    found = ragged_logits(runner, PROMPTS, CHUNKS)
    for logits, want in zip(found, expected, strict=True):
        assert np.abs(logits - want).mean() < 0.03 * np.abs(want).max()


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
