"""`pieray doctor --model`: can this folder be served, which way, and what does it need?  No torch, no weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pieray.cli.checks import Check
from pieray.models.config import architecture_name
from pieray.models.image_rules import PREPROCESSORS, SEEING

if TYPE_CHECKING:
    from pieray.models.config import ModelConfig

GIB = 1 << 30
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
#: ends of names of buffers in checkpoints of before: GPT-2's and GPT-NeoX' masks, frequencies of ropes
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")
SERVED_AS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CPU_KV_BYTES = 256 << 20
"""What the KV pool takes on a CPU unless it is told."""


def model_checks(name_or_path: str) -> Iterator[Check]:
    """Findings on one model, the first failure last: what comes behind it is not looked at."""
    from pieray.assets import model_folder
    from pieray.errors import ModelError
    from pieray.models.config import read_json
    from pieray.models.tensor_shapes import wanted_tensors
    from pieray.models.ways import NATIVE, glance

    try:
        folder = model_folder(name_or_path)
        raw = read_json(folder / "config.json")
        kind, why, config = glance(folder)
        detail = "a decoder of pieray's own"
        if kind != NATIVE:
            detail = f"through transformers' module: {why}"
        if config is None:  # the table has answered
            detail += "; so models of this architecture run, whether this one does is seen when it is loaded"
        yield Check("ok", "model", f"{architecture_name(raw)}, {detail}")
        if architecture_name(raw) in SEEING:
            yield _images(folder)
        wanted = wanted_tensors(config) if kind == NATIVE and config is not None else None
        yield from _weights(folder, kv_numbers(config, raw), wanted)
        yield from _tokenizer(folder)
    except ModelError as error:
        yield Check("fail", "model", error.message)


def _weights(folder: Path, kv_per_token: int, wanted: Mapping[str, tuple[int, ...]] | None) -> Iterator[Check]:
    """The files, the tensors that a native decoder reads (None: it is not known which), and what weights and KV pages
    take in memory against what is free."""
    import psutil

    from pieray.models.loader import Checkpoint

    with Checkpoint(folder, framework="numpy") as checkpoint:
        stored_headers = checkpoint.headers()
    if wanted is None:
        headers = {name: one for name, one in stored_headers.items() if not is_buffer(name, one[1])}
    else:
        wrong = _wrong(wanted, stored_headers)
        if wrong:
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            yield Check("fail", "weights", f"{wrong[0]}{more}")
            return
        headers = {name: stored_headers[name] for name in wanted}
    dtypes = sorted({dtype for _, dtype in headers.values()})
    num_parameters = sum(math.prod(shape) for shape, _ in headers.values())
    stored = sum(math.prod(shape) * BYTES.get(dtype, 1) for shape, dtype in headers.values())
    yield Check("ok", "weights", f"{num_parameters:,} parameters, {_size(stored)} as {', '.join(dtypes)}")
    odd = [dtype for dtype in dtypes if dtype not in SERVED_AS]
    if odd:
        yield Check("fail", "weights", f"{', '.join(odd)}; supported: float32, float16 or bfloat16")
        return
    on_gpu = has_gpu()
    dtype = SERVED_AS[dtypes[0]] if on_gpu and len(dtypes) == 1 else "float32" if not on_gpu else "bfloat16"
    item = 4 if dtype == "float32" else 2
    kv = f"{_size(kv_per_token * item)} for each token of context" if kv_per_token else "known once it is loaded"
    yield Check("ok", "KV pages", kv)
    needed = num_parameters * item
    if on_gpu:
        yield Check("ok", "memory", f"{_size(needed)} of the GPU for the weights as {dtype}; the rest is for KV pages")
        return
    free = psutil.virtual_memory().available
    detail = f"{_size(needed + CPU_KV_BYTES)} for the weights as {dtype} and a KV pool of 256 MiB; {_size(free)} free"
    if needed + CPU_KV_BYTES <= free:
        yield Check("ok", "memory", detail)
    else:
        yield Check("fail", "memory", detail, "serve it with --set model.dtype=bfloat16, or on a larger machine")


def _wrong(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[tuple[int, ...], str]]) -> list[str]:
    """What is missing or has another shape, a line for each."""
    lines = [f"no {name!r}" for name in wanted if name not in found]
    for name, shape in wanted.items():
        if name in found and found[name][0] != shape:
            lines.append(f"{name!r} has shape {found[name][0]}; config.json implies {shape}")
    return lines


def is_buffer(name: str, dtype: str) -> bool:
    """Whether a tensor of a file is one that no module reads as a weight: masks, and frequencies of ropes."""
    return name.endswith(BUFFERS) or dtype == "BOOL"


def kv_numbers(config: ModelConfig | None, raw: Mapping[str, Any]) -> int:
    """Numbers that the keys and values of one token take, over all layers; 0 where the config does not say."""
    if config is not None:
        return 2 * config.num_pool_layers * config.num_kv_heads * config.head_dim
    text = raw.get("text_config")
    if isinstance(text, dict):  # of a model that sees
        has_shifts = SEEING.get(str(architecture_name(raw)), False)
        raw = {**raw, **text}
        raw["num_hidden_layers"] = raw.get("num_hidden_layers", 0) + has_shifts
    heads, kv_heads = raw.get("num_attention_heads"), raw.get("num_key_value_heads")
    head_dim = raw.get("head_dim") or (raw["hidden_size"] // heads if heads and raw.get("hidden_size") else None)
    if "kv_lora_rank" in raw:  # latent attention, whose keys and values are kept for each head
        kv_heads, head_dim = heads, raw.get("qk_nope_head_dim", 0) + raw.get("qk_rope_head_dim", 0)
    found = [one for one in (raw.get("num_hidden_layers"), kv_heads or heads, head_dim) if isinstance(one, int)]
    return 2 * math.prod(found) if len(found) == 3 else 0


def _images(folder: Path) -> Check:
    """Whether there is what says how its images are scaled."""
    if any((folder / name).exists() for name in PREPROCESSORS):
        return Check("ok", "images", "seen by its vision tower")
    return Check("fail", "images", f"{folder / PREPROCESSORS[0]}: no such file; it says how images are scaled")


def _tokenizer(folder: Path) -> Iterator[Check]:
    from pieray.models.tokenizer import TokenizerSpec

    spec = TokenizerSpec.from_folder(folder)
    chat = "with a chat template" if spec.chat_template else "no chat template: chats are refused"
    yield Check("ok", "tokenizer", f"{_size(len(spec.json))}, {chat}")


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, without torch."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _size(num_bytes: int) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
