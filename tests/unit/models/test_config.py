"""What a config.json may say, and how each refusal reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pieray.errors import ModelError
from pieray.models.config import ModelConfig
from pieray.models.runner import ModelRunner

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
            "rope_scaling.short_factor is [1.0]; supported: a list of 4 numbers greater than 0",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is None; supported: a number"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "quantization_config: bits is None; supported: weights of float32",
        ),
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


LONG = {"type": "longrope", "long_factor": [1.0] * 4, "original_max_position_embeddings": 64}
QWEN_LAYERS = {"architectures": ["Qwen3ForCausalLM"], "num_attention_heads": 32, "use_sliding_window": True}
QWEN_WINDOWS = {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "use_sliding_window": True}
MISTRAL = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"]}
SMOLLM = {"architectures": ["SmolLM3ForCausalLM"]}
MOE = {"architectures": ["Qwen3MoeForCausalLM"]}
GRANITE = {"architectures": ["GraniteForCausalLM"]}
#: values that no config should have, and the key that is named
ODD: list[tuple[dict[str, Any], str]] = [
    ({"rope_theta": None}, "rope_theta is None"),
    ({"rope_theta": "1e4"}, "rope_theta is '1e4'"),
    ({"rope_theta": -1}, "rope_theta is -1"),
    ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
    ({"rope_parameters": [1]}, "rope_parameters is [1]"),
    (
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": "64"}},
        "original_max_position_embeddings is '64'",
    ),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": "32"}}, "beta_fast is '32'"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": "a", "mscale_all_dim": 1}}, "mscale is 'a'"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": []}}, "attention_factor is []"),
    ({"rope_scaling": {**LONG, "long_factor": ["1"] * 4}}, "long_factor is ['1', '1', '1', '1']"),
    ({"rope_scaling": {**LONG, "original_max_position_embeddings": 1}}, "ZeroDivisionError"),
    ({**QWEN_LAYERS, "layer_types": 3}, "layer_types is 3"),
    ({**QWEN_LAYERS, "layer_types": [["full_attention"]] * 4}, "layer_types is [['full_attention']"),
    ({**MISTRAL, "sliding_window": [1]}, "sliding_window is [1]"),
    ({**MISTRAL, "sliding_window": -1}, "sliding_window is -1"),
    ({**QWEN_WINDOWS, "max_window_layers": None}, "max_window_layers is None"),
    ({**QWEN_WINDOWS, "use_sliding_window": "yes"}, "use_sliding_window is 'yes'"),
    ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ({"eos_token_id": [2, None]}, "eos_token_id is [2, None]"),
    ({"hidden_act": ["silu"]}, "hidden_act is ['silu']"),
    ({**GEMMA3, "sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    ({**GEMMA3, "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    ({**GEMMA3, "query_pre_attn_scalar": -1}, "query_pre_attn_scalar is -1"),
    ({**MOE, "decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    ({**MOE, "mlp_only_layers": 3}, "mlp_only_layers is 3"),
    ({**MOE, "num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok is 5; supported: at most the number of"),
    ({**SMOLLM, "no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    ({**SMOLLM, "no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0]"),
    ({**GRANITE, "logits_scaling": 0}, "logits_scaling is 0"),
    ({**GRANITE, "attention_multiplier": 0}, "attention_multiplier is 0"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; supported: true or false"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
]


@pytest.mark.parametrize(("changes", "says"), ODD, ids=[says for _, says in ODD])
def test_odd_values_are_refused_with_file_and_key(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, **changes)
    assert says in caught.value.message
    assert str(tmp_path / "config.json") in caught.value.message


def test_null_heads_of_keys_are_as_many_as_those_of_queries(tmp_path: Path) -> None:
    assert read(tmp_path, architectures=["MistralForCausalLM"], num_key_value_heads=None).num_kv_heads == 4


def test_gemma_3_caps_no_scores_as_transformers_does(tmp_path: Path) -> None:
    assert read(tmp_path, **GEMMA3, attn_logit_softcapping=50.0).attention_softcap == 0
    gemma2 = read(tmp_path, architectures=["Gemma2ForCausalLM"], attn_logit_softcapping=20.0)
    assert gemma2.attention_softcap == 20


@pytest.mark.parametrize(
    ("changes", "says"), [({}, "the width of an expert is 20"), ({"hidden_size": 36}, "hidden_size is 36")]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_experts_of_odd_widths_are_refused_at_load(
    changes: dict[str, Any], says: str, dtype: str, tmp_path: Path
) -> None:
    read(tmp_path, **{**MOE, "moe_intermediate_size": 20, "head_dim": 8, **changes})
    with pytest.raises(ModelError, match=f"{says}; supported in {dtype}: multiples of 8"):
        ModelRunner.load(tmp_path, dtype=dtype)


def test_heads_that_no_kernel_of_the_gpu_computes_are_refused_at_load(tmp_path: Path) -> None:
    read(tmp_path, head_dim=320)
    with pytest.raises(ModelError, match="head_dim is 320; at most 256 on cuda"):
        ModelRunner.load(tmp_path, device="cuda")


def test_a_missing_or_broken_config_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: not readable as JSON"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="expected an object, found list"):
        ModelConfig.from_folder(tmp_path)
