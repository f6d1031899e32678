"""The settings of one served model and its device groups."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pieray.errors import ConfigError
from pieray.mapping import check_choice, check_numbers, check_share

MIB = 1 << 20
MAX_COHORT_WAIT_S = 60.0
MAX_REPLICAS = 256
_LEAST = dict.fromkeys(("page_size", "max_batch_tokens", "max_batch_requests", "image_pixels"), 1) | {
    "swap_memory_bytes": -1
}


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One served model and its device group."""

    path: str = "pie-tiny"
    """Folder with config.json, *.safetensors and tokenizer.json, or the name of an embedded model."""
    name: str = ""
    """By which programs and clients ask for it; "": the folder's name."""
    device: str = "auto"
    """"auto" (cuda where there is one), "cpu", "cuda", "cuda:1"."""
    replicas: int = 1
    """Device groups that serve it, each with its weights and its pool of pages on a device of its own; 0: one for each
    GPU of the cluster that no other model takes."""
    gpu_share: float = 1.0
    """Part of a GPU that a replica takes, where there is one: replicas whose parts add up to 1 may share it."""
    dtype: str = "auto"
    """"auto" (the checkpoint's on cuda, float32 on cpu), "float32", "bfloat16", "float16"."""
    max_context: int = 0
    """Longest context in tokens; 0: the model's `max_position_embeddings`.  Ropes that grow with the text (`dynamic`,
    `longrope`) have the frequencies of a text of this length, whatever the length of a text."""
    page_size: int = 16
    num_pages: int = 0
    """KV pages in the pool; 0 sizes it from `kv_memory_bytes`."""
    kv_memory_bytes: int = 0
    """Device memory of the KV pool; 0: 256 MiB on a CPU, on a GPU by `gpu_memory_fraction`."""
    gpu_memory_fraction: float = 0.85
    """Of the GPU memory that is free once the weights are loaded, so much is for KV pages, of which there are then
    262,144 at most; the rest is for what steps compute in."""
    kv_dtype: str = "auto"
    """What KV pages hold: "auto", what the model computes in, or "fp8", E4M3 without scales: a byte a number."""
    swap_memory_bytes: int = -1
    """Host memory for KV pages that are swapped out, taken as it is used; 0: nothing is swapped; -1: four times the KV
    pool, and at most a quarter of the memory that is available at the start."""
    max_batch_tokens: int = 2048
    """Tokens that one step computes at most: longer prefills run in chunks."""
    max_batch_requests: int = 256
    cohort_wait_s: float = 0.004
    """How long a step waits at most for inferlets that have just been answered."""
    cuda_graphs: bool = True
    """Replay decode steps as CUDA graphs, captured at first use; of no meaning on a CPU."""
    image_pixels: int = 1 << 24
    """Pixels of an image, of a model that sees; more are refused before any is decoded."""
    adapters: dict[str, Any] = field(default_factory=dict)
    """LoRA adapters by name: a safetensors file, or a folder with adapter_config.json."""
    adapter_bytes: int = 512 * MIB
    """LoRA weights loaded at one time, those that inferlets load for themselves included."""
    threads: int = 0
    """CPU threads of the batcher; 0: one for each 32 MiB of weights, and half of the cores at most, which replicas
    share; the rest is the actors'."""
    bf16_products: str = "auto"
    """How a CPU multiplies with weights of bfloat16: "amx" and "avx512_bf16" (instructions of some processors, which
    round what they multiply to bfloat16), "float32" (on any), "auto" ("amx" where there is, else "float32")."""
    quantization: str = "none"
    """What the matrices of a checkpoint of floats become as they are loaded: "int8" (a scale for each output; rows are
    rounded to int8 too, each over its largest number), "fp8" (E4M3, likewise; on a CPU rows stay as they are), or
    "none"."""

    @property
    def served_name(self) -> str:
        """`name`, or that of the folder, if its path is whole."""
        return self.name or Path(self.path).name


def check_model(settings: ModelSettings, prefix: str) -> None:
    """Raise ConfigError for a setting out of its range; `prefix` names the place in errors."""
    check_numbers(settings, prefix, _LEAST)
    if settings.replicas > MAX_REPLICAS:
        raise ConfigError(f"{prefix}replicas is at most {MAX_REPLICAS}; given {settings.replicas}")
    check_choice(f"{prefix}dtype", settings.dtype, ("auto", "float32", "bfloat16", "float16"))
    check_choice(f"{prefix}bf16_products", settings.bf16_products, ("auto", "amx", "avx512_bf16", "float32"))
    check_choice(f"{prefix}quantization", settings.quantization, ("none", "int8", "fp8"))
    check_choice(f"{prefix}kv_dtype", settings.kv_dtype, ("auto", "fp8"))
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", settings.device):
        raise ConfigError(f"{prefix}device is auto, cpu, cuda or cuda:NUMBER; given {settings.device!r}")
    check_share(f"{prefix}gpu_memory_fraction", settings.gpu_memory_fraction)
    check_share(f"{prefix}gpu_share", settings.gpu_share)
    if not settings.cohort_wait_s <= MAX_COHORT_WAIT_S:
        raise ConfigError(f"{prefix}cohort_wait_s is from 0 to {MAX_COHORT_WAIT_S:g}; given {settings.cohort_wait_s}")
