"""Small models with random weights and the tokenizer of pie-tiny, made by transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from pieray.assets import model_folder

VOCAB = 640
"""More than the tokenizer has."""


def random_llama(folder: Path, *, hidden: int = 64, layers: int = 2, context: int = 512, seed: int = 0) -> Path:
    """A Llama, float32, in that folder, which it returns."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=hidden * 3 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folder("pie-tiny") / name, folder)
    return folder


def greedy(folder: Path, prompt: list[int], count: int) -> list[int]:
    """What transformers itself says, a token at a time, whatever ends a text."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]
