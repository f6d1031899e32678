"""What becomes of the tensors of a checkpoint before a decoder has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, PROMPTS, expected_logits, make_model, ragged_logits
from safetensors.torch import load_file, save_file

from pieray.kernels.decoder_torch import add_rms_norm
from pieray.models.config import ModelConfig
from pieray.models.decoder import Decoder
from pieray.models.kv_pool import KvPool
from pieray.models.loader import Checkpoint
from pieray.models.runner import ModelRunner
from pieray.models.tensor_shapes import wanted_tensors
from pieray.models.weights import MlpWeights, load_weights

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_norms_with_an_offset_are_not_rounded(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model_type, changes = FAMILIES[name]
    make_model(model_type, tmp_path, **changes)
    path = tmp_path / "model.safetensors"
    stored = {key: tensor.to(dtype) for key, tensor in load_file(path).items()}
    save_file(stored, path, metadata={"format": "pt"})
    config = ModelConfig.from_folder(tmp_path)
    weights = load_weights(tmp_path, config, dtype, "cpu")
    layer = next(iter(weights.layers))
    found = {
        "model.norm": weights.norm,
        "model.layers.0.input_layernorm": layer.attn_norm,
        "model.layers.0.post_attention_layernorm": layer.attn_post,
        "model.layers.0.pre_feedforward_layernorm": layer.mlp_norm,
        "model.layers.0.post_feedforward_layernorm": layer.mlp_post,
    }
    if config.qk_norm:
        found |= {"model.layers.0.self_attn.q_norm": layer.q_norm, "model.layers.0.self_attn.k_norm": layer.k_norm}
    for key, norm in found.items():
        assert norm is not None
        want = 1.0 + stored[f"{key}.weight"].float()
        assert torch.equal(norm, want), key
        assert not torch.equal(want.to(dtype).float(), want), "a norm that rounding would not change proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_the_torch_decoder_computes_with_such_norms_in_half_precision(name: str, tmp_path: Path) -> None:
    model_type, changes = FAMILIES[name]
    expected = expected_logits(make_model(model_type, tmp_path, **changes))
    config = ModelConfig.from_folder(tmp_path)
    decoder = Decoder(config, load_weights(tmp_path, config, torch.bfloat16, "cpu"))
    runner = ModelRunner(config, decoder, KvPool(config, 64, 4, torch.bfloat16, "cpu"))
    got = ragged_logits(runner, PROMPTS[:1], [26])[0]
    assert np.abs(got - expected[0]).mean() < 0.03 * np.abs(expected[0]).max()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_norm_of_float32_is_multiplied_before_it_is_rounded(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 48).to(dtype), 1 + torch.randn(48) * 1e-3
    _, got = add_rms_norm(x, None, weight, 1e-6)
    wide = x.float()
    want = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * weight
    assert got.dtype == dtype
    assert (got.float() - want).abs().max() <= torch.finfo(dtype).eps * want.abs().max() / 2


@pytest.mark.slow
def test_a_checkpoint_that_is_overwritten_changes_no_weight(tmp_path: Path) -> None:
    make_model("llama", tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    weights = load_weights(tmp_path, config, torch.float32, "cpu")
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    want = {
        key: stored[key].clone()
        for key in (
            "model.embed_tokens.weight",
            "lm_head.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.norm.weight",
        )
    }
    del stored
    with path.open("r+b") as file:  # in place: a map of it would show this
        file.write(bytes(path.stat().st_size))
    layer = next(iter(weights.layers))
    assert isinstance(layer.mlp, MlpWeights)
    found = (weights.embed, weights.lm_head, layer.mlp.down, weights.norm)
    for (key, tensor), one in zip(want.items(), found, strict=True):
        assert torch.equal(one, tensor), key


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_tensors_that_doctor_looks_for_are_those_that_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_type, changes = FAMILIES[name]
    make_model(model_type, tmp_path, **changes)
    config = ModelConfig.from_folder(tmp_path)
    read: dict[str, tuple[int, ...]] = {}
    tensor = Checkpoint.tensor

    def noted(self: Checkpoint, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        read[name] = shape
        return tensor(self, name, shape)

    monkeypatch.setattr(Checkpoint, "tensor", noted)
    load_weights(tmp_path, config, torch.float32, "cpu")
    assert wanted_tensors(config) == read


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama with biases", "gemma2", "qwen3"])
def test_a_runner_whose_checkpoint_is_overwritten_computes_as_before(name: str, tmp_path: Path) -> None:
    model_type, changes = FAMILIES[name]
    make_model(model_type, tmp_path, **changes)
    runner = ModelRunner.load(tmp_path, num_pages=64, page_size=4)
    before = ragged_logits(runner, PROMPTS[:1], [26])[0]
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    again = ragged_logits(runner, PROMPTS[:1], [26])[0]
    assert np.array_equal(again, before)
