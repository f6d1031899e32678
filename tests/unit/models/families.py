"""Small random models of each family, written to a folder by transformers, and how a test steps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pieray.messages import Logits
from pieray.models.batch import ForwardItem
from pieray.models.runner import ModelRunner

COMMON = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
WIDE = {"hidden_size": 64}  # heads of 16: a multiple of 8 is what C computes
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 6, "tie_word_embeddings": True}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
#: name -> (model_type, what differs from COMMON)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, head_dim 8": ("llama", {"tie_word_embeddings": True, "head_dim": 8, "num_attention_heads": 6}),
    "llama with biases": ("llama", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    "llama 3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 16}),
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral, window 8": ("mistral", {"sliding_window": 8, "head_dim": 16}),
    "mistral, no window": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {"head_dim": 16}),
    "qwen2, windows": ("qwen2", {**WIDE, "use_sliding_window": True, "sliding_window": 6, "layer_types": SLIDING}),
    "qwen2, windows from layer 1": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 with biases": ("qwen3", {"head_dim": 24, "attention_bias": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3, yarn without rounding": ("qwen3", {"head_dim": 16, "rope_parameters": {**YARN, "truncate": False}}),
    "llama, dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": SLIDING}),
    "phi3": ("phi3", {**WIDE, "sliding_window": 9}),
    "granite": (
        "granite",
        {
            **WIDE,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.2,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
    ),
    "smollm3": ("smollm3", {**WIDE, "no_rope_layers": [1, 0, 1], "tie_word_embeddings": True}),
    "olmo2": ("olmo2", WIDE),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16}),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 48, "norm_topk_prob": False}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [1]}),
}
EXPERTS_OF_MANY = {"num_local_experts": 4, "num_experts_per_tok": 2}
#: those that run through transformers' module, likewise
HOSTED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": ("gpt_oss", {**EXPERTS_OF_MANY, "head_dim": 16, "sliding_window": 6}),
    "glm4": ("glm4", {"head_dim": 16}),
    "cohere": ("cohere", {"logit_scale": 0.5}),
    "cohere2": ("cohere2", {"head_dim": 16, "sliding_window": 6, "sliding_window_pattern": 2}),
    "gemma": ("gemma", {"head_dim": 16}),
    "phi3, part of each head rotated": ("phi3", {"partial_rotary_factor": 0.5, "head_dim": 16}),
    "exaone4": ("exaone4", {"head_dim": 16, "sliding_window": 6}),
    "granitemoe": ("granitemoe", EXPERTS_OF_MANY),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "minimax_m2": ("minimax_m2", {**EXPERTS_OF_MANY, "head_dim": 16}),
    "deepseek_v3, latent attention": (
        "deepseek_v3",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
        },
    ),
    "gpt2": ("gpt2", {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_positions": 256}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 48}),
    "phi": ("phi", {}),
    "starcoder2": ("starcoder2", {}),
    "olmo3": ("olmo3", {"sliding_window": 6}),
}
PROMPTS = [
    np.random.default_rng(seed).integers(3, 96, size).astype(np.uint32) for seed, size in enumerate((26, 23, 1, 9))
]
CHUNKS = [7, 1, 1, 9]  # prefill and decode in the same steps


def make_model(model_type: str, folder: Path, seed: int = 0, **changes: Any) -> Any:
    """A transformers model with weights spread far enough that a mistake shows, saved in `folder`."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](**{**COMMON, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.1))
    model.save_pretrained(folder)
    return model


def u32(values: Any) -> np.ndarray:
    return np.asarray(values, np.uint32)


class Sequence:
    """One sequence in a runner's pool: its pages, and how far it has come."""

    def __init__(self, runner: ModelRunner, first_page: int, num_pages: int) -> None:
        self.runner = runner
        self.pages = u32(np.arange(first_page, first_page + num_pages)[::-1])  # not in order on purpose
        self.kv_len = 0

    def item(self, tokens: Any) -> ForwardItem:
        """The next tokens as a ForwardItem; counts them as computed."""
        start = self.kv_len
        self.kv_len += len(tokens)
        return ForwardItem(self.pages, start, u32(tokens), u32(np.arange(start, self.kv_len)))


def expected_logits(model: Any) -> list[np.ndarray]:
    """Of PROMPTS, by transformers' own attention."""
    with torch.inference_mode():
        return [model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0].numpy() for prompt in PROMPTS]


def largest_difference(runner: ModelRunner, expected: list[np.ndarray]) -> float:
    """Of logits of PROMPTS from `expected`, the first alone and all in ragged batches, over the largest logit."""
    found = ragged_logits(runner, PROMPTS[:1], [26]) + ragged_logits(runner, PROMPTS, CHUNKS)
    pairs = zip(found, expected[:1] + expected, strict=True)
    return float(max(np.abs(one - other).max() for one, other in pairs) / max(np.abs(one).max() for one in expected))


def fork_difference(runner: ModelRunner) -> float:
    """A context goes on beside its copy, in pages of its own, and beside one that shares its full pages: largest
    difference of their logits over the largest logit."""
    size = runner.pool.page_size
    sequence = Sequence(runner, 0, 8)
    (first,) = runner.step([sequence.item(PROMPTS[0][: 2 * size + 1])], [[]])
    assert first == []
    pages, copied = sequence.pages, u32(np.arange(8, 16))
    runner.copy_tokens([(int(old), 0, int(new), 0, size) for old, new in zip(pages[:3], copied[:3], strict=True)])
    shared = u32([*pages[:2], 20, 21])
    runner.copy_tokens([(int(pages[2]), 0, 20, 0, size)])
    start, tokens = sequence.kv_len, PROMPTS[1][:5]
    positions = u32(np.arange(start, start + len(tokens)))
    items = [ForwardItem(u32(one), start, tokens, positions) for one in (pages, copied, shared)]
    found = [np.stack(one) for one in runner.step(items, [all_logits(item) for item in items])]
    return float(max(np.abs(one - found[0]).max() for one in found[1:]) / np.abs(found[0]).max())


def all_logits(item: ForwardItem) -> list[Logits]:
    return [Logits(row) for row in range(len(item.tokens))]


def ragged_logits(
    runner: ModelRunner, prompts: list[np.ndarray], chunks: list[int], pages_each: int = 16
) -> list[np.ndarray]:
    """Logits of every token of every prompt, prompt i fed in chunks of chunks[i], all in the same steps."""
    sequences = [Sequence(runner, pages_each * index, pages_each) for index in range(len(prompts))]
    rows: list[list[Any]] = [[] for _ in prompts]
    while any(sequence.kv_len < len(prompt) for sequence, prompt in zip(sequences, prompts, strict=True)):
        live = [index for index, sequence in enumerate(sequences) if sequence.kv_len < len(prompts[index])]
        items = [sequences[i].item(prompts[i][sequences[i].kv_len : sequences[i].kv_len + chunks[i]]) for i in live]
        for index, result in zip(live, runner.step(items, [all_logits(item) for item in items]), strict=True):
            assert isinstance(result, list), result
            rows[index] += result
    return [np.stack(one) for one in rows]
