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
        if config is not None and config.stored is not None:
            yield from _stored_weights(folder, config)
        else:
            wanted = wanted_tensors(config) if kind == NATIVE and config is not None else None
            yield from _weights(folder, kv_numbers(config, raw), wanted)
        yield from _tokenizer(folder)
    except ModelError as error:
        yield Check("fail", "model", error.message)


def _weights(folder: Path, kv_per_token: int, wanted: Mapping[str, tuple[int, ...]] | None) -> Iterator[Check]:
    """The files, the tensors that a native decoder reads (None: it is not known which), and what weights and KV pages
    take in memory against what is free."""
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
    yield _kv_check(kv_per_token, item)
    num_matrix = sum(
        math.prod(shape) for name, (shape, _) in headers.items() if len(shape) == 2 and wanted and "embed" not in name
    )
    hint = (
        f"; with model.quantization=int8 {_size(num_parameters * item - num_matrix * (item - 1))}" if num_matrix else ""
    )
    yield _memory_check(num_parameters * item, f"the weights as {dtype}", hint)


def _stored_weights(folder: Path, config: ModelConfig) -> Iterator[Check]:
    """As `_weights`, of a quantized checkpoint: what products take as it is stays so, the rest becomes floats."""
    from pieray.models.loader import Checkpoint
    from pieray.models.stored_formats import tensors_of
    from pieray.models.tensor_shapes import wanted_tensors

    form = config.stored
    assert form is not None
    with Checkpoint(folder, framework="numpy") as checkpoint:
        headers = checkpoint.headers()
    dtype = "float32" if not has_gpu() else "bfloat16"
    item, stored, needed, numbers, dtypes = 4 if dtype == "float32" else 2, 0, 0, 0, set()
    for name, shape in wanted_tensors(config).items():
        held = tensors_of(name, headers) or [name]
        if held[0] not in headers:
            yield Check("fail", "weights", f"no {name!r}, nor what {form.method} has in its place")
            return
        kind, has_zeros = headers[held[0]][1], any(one.endswith("zero_point") for one in held)
        is_plain = has_zeros or any(form.block) or ".experts." in name
        stays = not is_plain and (kind == "F8_E4M3" or (kind == "I8" and form.rounds_rows))
        stored += sum(math.prod(headers[one][0]) * BYTES.get(headers[one][1], 1) for one in held)
        needed += math.prod(shape) * (1 if stays else item)
        numbers += math.prod(shape)
        dtypes.add(kind)
    yield Check(
        "ok", "weights", f"{numbers:,} parameters, {_size(stored)} of {form.method} as {', '.join(sorted(dtypes))}"
    )
    yield _kv_check(kv_numbers(config, {}), item)
    yield _memory_check(
        needed, f"the weights, of which {dtype} is made where products do not take them as they are", ""
    )


def _kv_check(per_token: int, item: int) -> Check:
    if not per_token:
        return Check("ok", "KV pages", "known once it is loaded")
    fp8 = f"; {_size(per_token)} with model.kv_dtype=fp8"
    return Check("ok", "KV pages", f"{_size(per_token * item)} for each token of context{fp8}")


def _memory_check(needed: int, what: str, hint: str) -> Check:
    """Whether so many bytes for the weights, and KV pages, fit into what is free."""
    import psutil

    if has_gpu():
        return Check("ok", "memory", f"{_size(needed)} of the GPU for {what}; the rest is for KV pages{hint}")
    free = psutil.virtual_memory().available
    detail = f"{_size(needed + CPU_KV_BYTES)} for {what} and a KV pool of 256 MiB; {_size(free)} free{hint}"
    if needed + CPU_KV_BYTES <= free:
        return Check("ok", "memory", detail)
    advice = "serve it with --set model.dtype=bfloat16 or model.quantization=int8, or on a larger machine"
    return Check("fail", "memory", detail, advice)


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
