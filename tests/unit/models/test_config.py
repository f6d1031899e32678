"""What a config.json may say, and how each refusal reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pieray.errors import ModelError
from pieray.models.config import ModelConfig

PLAIN: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def read(folder: Path, **changes: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps({**PLAIN, **changes}))
    return ModelConfig.from_folder(folder)


def test_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (config.num_kv_heads, config.head_dim, config.rms_eps, config.rope.theta) == (4, 8, 1e-6, 10000.0)
    assert config.windows == (0, 0, 0, 0)
    assert not any((config.qkv_bias, config.out_bias, config.mlp_bias, config.qk_norm, config.tie_embeddings))


def test_silent_files_mean_what_each_family_means(tmp_path: Path) -> None:
    mistral = read(tmp_path, architectures=["MistralForCausalLM"], num_attention_heads=16)
    assert (mistral.num_kv_heads, mistral.head_dim) == (8, 2)
    qwen = read(tmp_path, architectures=["Qwen3ForCausalLM"], num_attention_heads=32)
    assert (qwen.num_kv_heads, qwen.head_dim, qwen.qk_norm) == (32, 128, "head")


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def test_rope_of_transformers_4_and_5_reads_the_same(tmp_path: Path) -> None:
    old = read(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3})
    new = read(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    assert old.rope == new.rope
    assert (old.rope.kind, old.rope.theta, old.rope.factor) == ("llama3", 5e5, 8.0)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 9}, (9, 9, 9, 9)),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, (0, 0, 0, 0)),
        ({"architectures": ["MistralForCausalLM"]}, (4096,) * 4),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 9}, (0, 0, 0, 0)),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 9,
                "use_sliding_window": True,
                "max_window_layers": 3,
            },
            (0, 0, 0, 9),
        ),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (9, 0, 9, 0),
        ),
    ],
)
def test_windows(changes: dict[str, Any], windows: tuple[int, ...], tmp_path: Path) -> None:
    assert read(tmp_path, num_key_value_heads=2, **changes).windows == windows


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures is 'GPT2LMHeadModel'; supported: Gemma2ForCausalLM or"),
        ({"architectures": None}, "architectures is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: silu or swish or gelu_pytorch_tanh"),
        (
            {"rope_scaling": {"rope_type": "axial", "factor": 4.0}},
            "rope_scaling.rope_type is 'axial'; supported: default",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.factor is None; supported: a number"),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0] * 4}},
            "rope_scaling.short_factor is [1.0]; supported: a list of 4 numbers",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is None; supported: a number"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is 'gptq'; supported: unquantized"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; supported: a divisor of num_attention_heads = 4"),
        ({"vocab_size": None}, "vocab_size is None; supported: a positive integer"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported: 1.0"),
        ({"head_dim": 7}, "head_dim is 7; supported: an even number"),
    ],
)
def test_what_cannot_be_computed_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, **changes)
    assert says in caught.value.message
    assert str(tmp_path / "config.json") in caught.value.message


def test_a_missing_or_broken_config_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: not readable as JSON"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="expected an object, found list"):
        ModelConfig.from_folder(tmp_path)
