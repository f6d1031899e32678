"""Random LoRA adapters of a model folder, as PEFT names them, and the model that each makes when it is merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save, save_file

from pieray.models.config import ModelConfig

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def module_of(target: str) -> str:
    return f"{'self_attn' if target[0] in 'qkvo' else 'mlp'}.{target}"


def sizes(config: ModelConfig, target: str) -> tuple[int, int]:
    """(in, out)"""
    heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, wide = config.hidden_size, config.intermediate_size
    return {
        "q_proj": (hidden, heads),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (heads, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
    }[target]


def random_lora(
    folder: Path,
    rank: int,
    targets: Sequence[str] = TARGETS,
    seed: int = 0,
    size: float = 0.3,
    layers: Sequence[int] | None = None,
    prefix: str = "base_model.model.",
) -> dict[str, torch.Tensor]:
    """A and B of each target in each layer, large enough that the text changes."""
    config, rng = ModelConfig.from_folder(folder), np.random.default_rng(seed)
    tensors = {}
    for layer in range(config.num_layers) if layers is None else layers:
        for target in targets:
            num_in, num_out = sizes(config, target)
            name = f"{prefix}model.layers.{layer}.{module_of(target)}.lora_"
            for half, shape in (("A", (rank, num_in)), ("B", (num_out, rank))):
                values = rng.standard_normal(shape) * (size / shape[1] ** 0.5)
                tensors[f"{name}{half}.weight"] = torch.from_numpy(values.astype(np.float32))
    return tensors


def as_bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    data: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return data


def as_folder(tensors: dict[str, torch.Tensor], folder: Path, **config: object) -> Path:
    """The adapter as PEFT saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "bias": "none", **config}))
    return folder


def merged(base: Path, tensors: dict[str, torch.Tensor], folder: Path, alpha: float | None = None) -> Path:
    """A model folder whose weights have the adapter added."""
    shutil.copytree(base, folder)
    weights = load_file(base / "model.safetensors")
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            scale = 1.0 if alpha is None else alpha / len(a)
            b = tensors[name.replace("lora_A", "lora_B")]
            weights[name.removeprefix("base_model.model.").replace("lora_A.", "")] += scale * (b @ a)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")
    return folder
