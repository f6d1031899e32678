"""Random Llama models of two sizes, in bfloat16, as a folder that every peer reads: seeded, so always the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

SHAPES: dict[str, dict[str, Any]] = {
    "5m": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "82m": {
        "vocab_size": 16384,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 9,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
}
HEAD_DIM = 64
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_model(name: str, folder: Path) -> Path:
    """The folder of a model, written unless it is there."""
    target = folder / name
    if (target / "tokenizer.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    (target / "config.json").write_text(json.dumps(config, indent=1))
    (target / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    )
    save_file(_weights(shape), target / "model.safetensors", {"format": "pt"})
    _tokenizer(shape["vocab_size"]).save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    )
    return target


def make_prompts(count: int, length: int, seed: int) -> tuple[list[str], list[list[int]]]:
    """Random letters, as text and as tokens: one token a letter, in both models."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list(LETTERS), length)) for _ in range(count)]
    ids = {letter: 3 + i for i, letter in enumerate(_alphabet())}
    return texts, [[ids[letter] for letter in text] for text in texts]


def _weights(shape: dict[str, Any]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    keys = shape["num_key_value_heads"] * HEAD_DIM

    def matrix(num_out: int, num_in: int) -> torch.Tensor:
        return (torch.randn(num_out, num_in, generator=generator) * num_in**-0.5).bfloat16()

    found = {
        "model.embed_tokens.weight": torch.randn(shape["vocab_size"], hidden, generator=generator).bfloat16(),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        "lm_head.weight": matrix(shape["vocab_size"], hidden),
    }
    for layer in range(shape["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found |= {
            f"{at}.input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            f"{at}.post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            f"{at}.self_attn.q_proj.weight": matrix(hidden, hidden),
            f"{at}.self_attn.k_proj.weight": matrix(keys, hidden),
            f"{at}.self_attn.v_proj.weight": matrix(keys, hidden),
            f"{at}.self_attn.o_proj.weight": matrix(hidden, hidden),
            f"{at}.mlp.gate_proj.weight": matrix(wide, hidden),
            f"{at}.mlp.up_proj.weight": matrix(wide, hidden),
            f"{at}.mlp.down_proj.weight": matrix(hidden, wide),
        }
    return found


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _tokenizer(vocab_size: int) -> Tokenizer:
    """A token a byte, and others that nothing is encoded as, up to the model's vocabulary."""
    vocab = {name: i for i, name in enumerate(("<pad>", "<s>", "</s>"))}
    vocab |= {letter: 3 + i for i, letter in enumerate(_alphabet())}
    vocab |= {f"w{i}": i for i in range(len(vocab), vocab_size)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    return tokenizer
