"""The architectures with a decoder of pieray's own, and in what they differ: a row each, read by `ModelConfig`.

An architecture that is not here runs through transformers' own module (`pieray/models/transformers_decoder.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Raw = Mapping[str, Any]


class OddValue(ValueError):
    """A key of a `config.json` has a value that nothing can be computed of."""


def whole_number(raw: Raw, key: str, default: int, least: int = 1) -> int:
    """The integer at `key`; OddValue if it is another thing or less than `least`."""
    value = raw.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OddValue(f"{key} is {value!r}; supported: an integer of at least {least}")
    return value


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """Names, in a layer of a checkpoint, of the norms before and behind attention and MLP; None: there is none."""

    attn: str | None = "input_layernorm"
    attn_post: str | None = None
    mlp: str | None = "post_attention_layernorm"
    mlp_post: str | None = None


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Names, in a layer of a checkpoint, of a mixture of experts: each expert's gate, up and down lie under
    `{experts}.{number}`."""

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


PRE = LayerNorms()
AROUND = LayerNorms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
BEHIND = LayerNorms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")

SPLIT_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
SPLIT_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


def _never(_raw: Raw, _layer: int) -> bool:
    return False


def _always(_raw: Raw, _layer: int) -> bool:
    return True


def _from_layer(raw: Raw, layer: int) -> bool:
    return bool(raw.get("use_sliding_window")) and layer >= whole_number(raw, "max_window_layers", 28, 0)


def _even_up_to(raw: Raw, layer: int) -> bool:
    return (
        bool(raw.get("use_sliding_window")) and not layer % 2 and layer < whole_number(raw, "max_window_layers", 28, 0)
    )


def _if_used(raw: Raw, _layer: int) -> bool:
    return bool(raw.get("use_sliding_window"))


def _but_each_nth(raw: Raw, layer: int) -> bool:
    return bool((layer + 1) % whole_number(raw, "sliding_window_pattern", 2))


def _rotates(raw: Raw, layer: int) -> bool:
    """Whether a layer of SmolLM3 rotates its queries and keys."""
    listed = raw.get("no_rope_layers")  # so they are called that are rotated
    if not listed:
        return bool((layer + 1) % whole_number(raw, "no_rope_layer_interval", 4))
    if not isinstance(listed, list) or len(listed) <= layer:
        raise OddValue(f"no_rope_layers is {listed!r}; supported: a list with a number for each layer")
    return bool(listed[layer])


def _all_rotate(_raw: Raw, _layer: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Architecture:
    """What its `config.json` does not say.  Names of keys are those of `config.json`, "" where there is no such key."""

    family: str
    defaults: Raw = field(default_factory=dict)  # what transformers assumes where the file is silent
    has_qkv_bias: bool = False  # whatever the file says
    attention_bias: str = ""  # key: biases of query, key and value
    out_bias: str = ""
    mlp_bias: str = ""
    norms: LayerNorms = PRE
    norm_offset: float = 0.0  # added to the weights of all norms
    qk_norm: str = ""  # a norm of queries and of keys: "head", of each head, or "row", of all heads together
    is_windowed: Callable[[Raw, int], bool] = _never  # where the file has no layer_types
    window_switch: str = ""  # key: without it no layer has a window, whatever layer_types say
    reads_layer_types: bool = False
    rotates: Callable[[Raw, int], bool] = _all_rotate
    has_local_rope: bool = False  # windowed layers rotate by other frequencies
    activation: str = "hidden_act"
    scales_embedding: bool = False  # by the root of the hidden size
    embedding_multiplier: str = ""
    residual_multiplier: str = ""
    attention_multiplier: str = ""  # in place of 1 / sqrt(head_dim)
    query_scalar: str = ""  # in place of head_dim in that
    logits_divisor: str = ""
    attention_softcap: str = ""
    logits_softcap: str = ""
    qkv: tuple[str, ...] = SPLIT_QKV  # modules of a layer
    gate_up: tuple[str, ...] = SPLIT_GATE_UP
    experts: ExpertNames | None = None
    experts_width: str = "moe_intermediate_size"
    shared_width: str = ""
    are_weights_normalized: bool = False  # else as norm_topk_prob says


GEMMA: dict[str, Any] = {
    "norms": AROUND,
    "norm_offset": 1.0,
    "reads_layer_types": True,
    "is_windowed": _but_each_nth,
    "activation": "hidden_activation",
    "scales_embedding": True,
    "query_scalar": "query_pre_attn_scalar",
    "logits_softcap": "final_logit_softcapping",
    "attention_bias": "attention_bias",
    "out_bias": "attention_bias",
}
GEMMA_DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}
QWEN_WINDOWS: dict[str, Any] = {"reads_layer_types": True, "window_switch": "use_sliding_window"}

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(
        "llama", attention_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "MistralForCausalLM": Architecture(
        "mistral", {"num_key_value_heads": 8, "sliding_window": 4096}, is_windowed=_always
    ),
    "Qwen2ForCausalLM": Architecture(
        "qwen2",
        {"num_key_value_heads": 32, "sliding_window": 4096},
        has_qkv_bias=True,
        is_windowed=_from_layer,
        **QWEN_WINDOWS,
    ),
    "Qwen3ForCausalLM": Architecture(
        "qwen3",
        {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
        attention_bias="attention_bias",
        out_bias="attention_bias",
        qk_norm="head",
        is_windowed=_from_layer,
        **QWEN_WINDOWS,
    ),
    "Gemma2ForCausalLM": Architecture(
        "gemma2",
        {**GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        attention_softcap="attn_logit_softcapping",
        **GEMMA,
    ),
    "Gemma3ForCausalLM": Architecture(
        "gemma3",
        {**GEMMA_DEFAULTS, "max_position_embeddings": 131072, "sliding_window_pattern": 6},
        qk_norm="head",
        has_local_rope=True,
        **GEMMA,
    ),
    "Phi3ForCausalLM": Architecture(
        "phi3",
        {"rms_norm_eps": 1e-5, "sliding_window": None},
        is_windowed=_always,
        qkv=("self_attn.qkv_proj",),
        gate_up=("mlp.gate_up_proj",),
    ),
    "GraniteForCausalLM": Architecture(
        "granite",
        {"attention_multiplier": 1.0},
        attention_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        embedding_multiplier="embedding_multiplier",
        residual_multiplier="residual_multiplier",
        attention_multiplier="attention_multiplier",
        logits_divisor="logits_scaling",
    ),
    "SmolLM3ForCausalLM": Architecture(
        "smollm3",
        {"num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True, "sliding_window": None},
        attention_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        rotates=_rotates,
        is_windowed=lambda raw, layer: not _rotates(raw, layer),
        **QWEN_WINDOWS,
    ),
    "Olmo2ForCausalLM": Architecture(
        "olmo2",
        {"rms_norm_eps": 1e-5},
        attention_bias="attention_bias",
        out_bias="attention_bias",
        norms=BEHIND,
        qk_norm="row",
    ),
    "MixtralForCausalLM": Architecture(
        "mixtral",
        {
            "num_key_value_heads": 8,
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "num_experts_per_tok": 2,
            "num_experts": 8,
        },
        is_windowed=_always,
        experts=ExpertNames("block_sparse_moe", "w1", "w3", "w2"),
        experts_width="intermediate_size",
        are_weights_normalized=True,
    ),
    "Qwen2MoeForCausalLM": Architecture(
        "qwen2_moe",
        {
            "num_key_value_heads": 16,
            "sliding_window": 4096,
            "qkv_bias": True,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
        attention_bias="qkv_bias",
        is_windowed=_even_up_to,
        experts=ExpertNames(),
        shared_width="shared_expert_intermediate_size",
        **QWEN_WINDOWS,
    ),
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3_moe",
        {
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        attention_bias="attention_bias",
        out_bias="attention_bias",
        qk_norm="head",
        is_windowed=_if_used,
        window_switch="use_sliding_window",
        experts=ExpertNames(),
    ),
}
