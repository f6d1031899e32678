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
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
#: name -> (model_type, what differs from COMMON)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, head_dim 8": ("llama", {"tie_word_embeddings": True, "head_dim": 8, "num_attention_heads": 6}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 16}),
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral, window 8": ("mistral", {"sliding_window": 8, "head_dim": 16}),
    "mistral, no window": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {"head_dim": 16}),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "layer_types": SLIDING}),
    "qwen2, windows from layer 1": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 with biases": ("qwen3", {"head_dim": 24, "attention_bias": True}),
}


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


def all_logits(item: ForwardItem) -> list[Logits]:
    return [Logits(row) for row in range(len(item.tokens))]


def ragged_logits(runner: ModelRunner, prompts: list[np.ndarray], chunks: list[int]) -> list[np.ndarray]:
    """Logits of every token of every prompt, prompt i fed in chunks of chunks[i], all in the same steps."""
    sequences = [Sequence(runner, 16 * index, 16) for index in range(len(prompts))]
    rows: list[list[Any]] = [[] for _ in prompts]
    while any(sequence.kv_len < len(prompt) for sequence, prompt in zip(sequences, prompts, strict=True)):
        live = [index for index, sequence in enumerate(sequences) if sequence.kv_len < len(prompts[index])]
        items = [sequences[i].item(prompts[i][sequences[i].kv_len : sequences[i].kv_len + chunks[i]]) for i in live]
        for index, result in zip(live, runner.step(items, [all_logits(item) for item in items]), strict=True):
            assert isinstance(result, list), result
            rows[index] += result
    return [np.stack(one) for one in rows]
