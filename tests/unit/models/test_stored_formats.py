"""Quantized checkpoints: written as their makers write them, served with the logits of the dequantized matrices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_model, ragged_logits, u32
from safetensors.torch import load_file, save_file

from pieray.errors import ModelError
from pieray.models.decoder import Decoder
from pieray.models.runner import ModelRunner
from pieray.models.ways import glance, way_of

PROMPTS = [u32(np.random.default_rng(seed).integers(3, 96, size)) for seed, size in enumerate((40, 9))]
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
#: mean difference of logits over their mean size: of plain matrices, and of those that are multiplied with rows of int8
EXACT, ROUNDED = 1e-4, 0.08
Stored = dict[str, torch.Tensor]
#: a module's name and matrix -> what is stored of it, and the matrix that it stands for
Writer = Callable[[str, torch.Tensor], tuple[Stored, torch.Tensor]]


def channel_scales(matrix: torch.Tensor, largest: float, group: int = 0) -> torch.Tensor:
    parts = matrix.view(len(matrix), -1, group or matrix.shape[1])
    return parts.abs().amax(2) / largest


def compressed(args: dict[str, Any], form: str) -> Writer:
    """By the library of the format."""

    def write(name: str, matrix: torch.Tensor) -> tuple[Stored, torch.Tensor]:
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors.base import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        largest, group = {("int", 8): 127, ("int", 4): 7, ("float", 8): 448}[args["type"], args["num_bits"]], 0
        if args["strategy"] == "group":
            group = args["group_size"]
        scales = channel_scales(matrix, largest, group)
        if args["strategy"] == "tensor":
            scales = scales.max().reshape(1)
        if args["strategy"] == "block":
            high, wide = args["block_structure"]
            scales = matrix.view(len(matrix) // high, high, -1, wide).abs().amax((1, 3)) / largest
        given = {"weight": matrix, "weight_scale": scales}
        if not args["symmetric"]:
            low, high = (getattr(matrix.view(len(matrix), -1, group), f"a{end}")(2) for end in ("min", "max"))
            given["weight_scale"] = (high - low) / 15
            given["weight_zero_point"] = (-8 - low / given["weight_scale"]).round().clamp(-8, 7).to(torch.int8)
        compressor = BaseCompressor.get_value_from_registry(form)
        packed = compressor.compress(given, scheme)
        plain = compressor.decompress(packed, scheme)["weight"].float()
        return {f"{name}.{key}": value.contiguous() for key, value in packed.items()}, plain

    return write


def fields(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Values [n, m], the fields of int32 [n, m * bits / 32], the lowest first."""
    per_word = 32 // bits
    wide = values.long().view(len(values), -1, per_word) << torch.arange(0, 32, bits)
    return wide.sum(2).to(torch.int64).bitwise_and(0xFFFFFFFF).to(torch.int32)


def gptq(bits: int, version: int, *, has_order: bool) -> Writer:
    """As AutoGPTQ packs: words along the inputs, zero points less one (version 1)."""

    def write(name: str, matrix: torch.Tensor) -> tuple[Stored, torch.Tensor]:
        num_out, num_in = matrix.shape
        num_groups, top = num_in // 32, (1 << bits) - 1
        order = torch.arange(num_in) // 32
        if has_order:
            order = order[torch.randperm(num_in, generator=torch.Generator().manual_seed(num_in))]
        scales, zeros = torch.empty(num_groups, num_out), torch.empty(num_groups, num_out, dtype=torch.int64)
        for group in range(num_groups):
            part = matrix[:, order == group]
            low, high = part.amin(1).clamp(max=-1e-3), part.amax(1).clamp(min=1e-3)
            scales[group] = ((high - low) / top).half().float()
            zeros[group] = (-low / scales[group]).round().clamp(1, top)
        values = (matrix.T / scales[order] + zeros[order]).round().clamp(0, top)
        stored = {
            f"{name}.qweight": fields(values.T.contiguous(), bits).T.contiguous(),
            f"{name}.qzeros": fields(zeros - int(version == 1), bits),
            f"{name}.scales": scales.half(),
            f"{name}.g_idx": order.to(torch.int32),
        }
        return stored, ((values - zeros[order]) * scales[order]).T.contiguous()

    return write


def awq(name: str, matrix: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    """As AutoAWQ packs (gemm): eight outputs a word, in the order 0 2 4 6 1 3 5 7."""
    num_out, num_in = matrix.shape
    groups = matrix.T.view(-1, 32, num_out)
    low, high = groups.amin(1).clamp(max=-1e-3), groups.amax(1).clamp(min=1e-3)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    values = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(numbers: torch.Tensor) -> torch.Tensor:
        return fields(numbers.view(len(numbers), -1, 8)[:, :, order].flatten(1), 4)

    stored = {
        f"{name}.qweight": packed(values.view(num_in, num_out)),
        f"{name}.qzeros": packed(zeros),
        f"{name}.scales": scales.half(),
    }
    return stored, ((values - zeros[:, None]) * scales[:, None]).view(num_in, num_out).T.contiguous()


def four_bits(kind: str, *, is_nested: bool) -> Writer:
    """By the library of the format."""

    def write(name: str, matrix: torch.Tensor) -> tuple[Stored, torch.Tensor]:
        functional = pytest.importorskip("bitsandbytes").functional
        data, state = functional.quantize_4bit(matrix, quant_type=kind, compress_statistics=is_nested)
        stored = {f"{name}.weight": data}
        stored |= {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        return stored, functional.dequantize_4bit(data, state).float()

    return write


def eight_bits(name: str, matrix: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    functional = pytest.importorskip("bitsandbytes").functional
    values, tops, _ = functional.int8_vectorwise_quant(matrix.half())
    stored = {
        f"{name}.weight": values,
        f"{name}.SCB": tops,
        f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return stored, values.float() * (tops.float() / 127)[:, None]


def fp8(name: str, matrix: torch.Tensor) -> tuple[Stored, torch.Tensor]:
    """Blocks of 16 by 32, as DeepSeek-V3's are of 128 by 128."""
    scales = matrix.view(len(matrix) // 16, 16, -1, 32).abs().amax((1, 3)) / 448
    spread = scales.repeat_interleave(16, 0).repeat_interleave(32, 1)
    values = (matrix / spread).to(torch.float8_e4m3fn)
    return {f"{name}.weight": values, f"{name}.weight_scale_inv": scales}, values.float() * spread


INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
ROWS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def compressed_config(form: str, weights: dict[str, Any], rows: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": rows}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


def compressed_case(form: str, weights: dict[str, Any], rows: dict[str, Any] | None, tolerance: float) -> Any:
    return compressed_config(form, weights, rows), compressed(weights, form), tolerance


#: name -> (quantization_config, what writes a matrix, tolerance)
CASES: dict[str, tuple[dict[str, Any], Writer, float]] = {
    "int8 w8a8": compressed_case("int-quantized", INT8, ROWS, ROUNDED),
    "int8 w8a8 by tensor": compressed_case("int-quantized", {**INT8, "strategy": "tensor"}, ROWS, ROUNDED),
    "int8 w8a16": compressed_case("naive-quantized", INT8, None, EXACT),
    "fp8": compressed_case("float-quantized", FP8, None, EXACT),
    "fp8 by tensor": compressed_case("float-quantized", {**FP8, "strategy": "tensor"}, None, EXACT),
    "fp8 by block": compressed_case(
        "float-quantized", {**FP8, "strategy": "block", "block_structure": [16, 32]}, None, EXACT
    ),
    "w4a16": compressed_case("pack-quantized", INT4, None, EXACT),
    "w4a16 with zero points": compressed_case("pack-quantized", {**INT4, "symmetric": False}, None, EXACT),
    "w8a16 packed": compressed_case("pack-quantized", INT8, None, EXACT),
    "fp8 of blocks": ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 32]}, fp8, EXACT),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, gptq(4, 1, has_order=False), EXACT),
    "gptq of 8 bits, in order of activations": (
        {"quant_method": "gptq", "bits": 8, "group_size": 32, "desc_act": True},
        gptq(8, 1, has_order=True),
        EXACT,
    ),
    "gptq v2 of 2 bits": (
        {"quant_method": "gptq", "bits": 2, "checkpoint_format": "gptq_v2"},
        gptq(2, 2, has_order=False),
        EXACT,
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, awq, EXACT),
    "nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        four_bits("nf4", is_nested=False),
        EXACT,
    ),
    "nf4, nested": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        four_bits("nf4", is_nested=True),
        EXACT,
    ),
    "bitsandbytes int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, eight_bits, EXACT),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    make_model("llama", folder, **SHAPE)
    return folder


def write(plain: Path, folder: Path, config: dict[str, Any], writer: Writer) -> Path:
    """The quantized checkpoint in folder/stored, the dequantized one in folder/plain."""
    raw = json.loads((plain / "config.json").read_text())
    stored, dequantized = {}, {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        stored[name] = dequantized[name] = tensor
        if name.endswith("_proj.weight"):
            del stored[name]
            found, dequantized[name] = writer(name.removesuffix(".weight"), tensor)
            stored |= found
    for kind, tensors, more in (("stored", stored, {"quantization_config": config}), ("plain", dequantized, {})):
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(json.dumps({**raw, **more}))
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / kind / "model.safetensors")
    return folder


def difference(folder: Path, **settings: Any) -> float:
    found, want = (
        ragged_logits(ModelRunner.load(folder / kind, dtype="float32", num_pages=64, **given), PROMPTS, [40, 3])
        for kind, given in (("stored", settings), ("plain", {}))
    )
    return max(float(np.abs(a - b).mean() / np.abs(b).mean()) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_dequantized_matrices(name: str, plain: Path, tmp_path: Path) -> None:
    config, writer, tolerance = CASES[name]
    write(plain, tmp_path, config, writer)
    found = difference(tmp_path)
    assert found < tolerance
    assert (found > 1e-3) == (tolerance == ROUNDED)  # rows are rounded where the checkpoint says so, else not


def test_what_is_stored_is_quantized_once_more_where_the_settings_say_so(plain: Path, tmp_path: Path) -> None:
    config, writer, _ = CASES["bitsandbytes int8"]
    write(plain, tmp_path, config, writer)
    assert 1e-3 < difference(tmp_path, quantization="int8") < ROUNDED


def test_without_a_compiler_too(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pieray.models.decoder_cpu.library", lambda: None)
    for name in ("int8 w8a8", "fp8"):
        config, writer, tolerance = CASES[name]
        (tmp_path / name).mkdir()
        write(plain, tmp_path / name, config, writer)
        assert isinstance(ModelRunner.load(tmp_path / name / "stored", num_pages=4).decoder, Decoder)
        assert difference(tmp_path / name) < tolerance


REFUSED = {
    "hqq": ({"quant_method": "hqq"}, "quant_method is 'hqq'"),
    "nvfp4": (compressed_config("nvfp4-pack-quantized", INT4), "format is 'nvfp4-pack-quantized'"),
    "three bits": ({"quant_method": "gptq", "bits": 3}, "bits is 3"),
    "gemv": ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version is 'gemv'"),
    "e5m2": ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'"),
    "blocks of less than nothing": ({"quant_method": "fp8", "weight_block_size": [-128, 128]}, "weight_block_size is"),
    "half a block": ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size is"),
    "three sides to a block": (
        compressed_config("float-quantized", {**FP8, "block_structure": [16, 16, 16]}),
        "block_structure is",
    ),
    "six bits": (compressed_config("pack-quantized", {**INT4, "num_bits": 6}), "int weights of 6 bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_refused_with_what_is(name: str, plain: Path, tmp_path: Path) -> None:
    config, message = REFUSED[name]
    raw = json.loads((plain / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "quantization_config": config}))
    with pytest.raises(ModelError, match=message + r".*; supported: .*compressed-tensors .*, awq \(4 bits, gemm\)"):
        ModelRunner.load(tmp_path, num_pages=4)


def test_models_that_run_through_transformers_are_refused_quantized(plain: Path, tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "quantization_config": CASES["awq"][0]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="awq checkpoints are served of models with a decoder of pieray's own"):
        ModelRunner.load(tmp_path, num_pages=4)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("awq", lambda key, t: t[:-1] if key.endswith("q_proj.qweight") else t, "q_proj.qweight' is int32"),
        ("gptq", lambda key, t: t + 9 if key.endswith("q_proj.g_idx") else t, "groups of .*q_proj.* are not below 2"),
        ("awq", lambda key, t: None if key.endswith("q_proj.scales") else t, "no '.*q_proj.scales'"),
        ("fp8 of blocks", lambda key, t: t[:1] if key.endswith("q_proj.weight_scale_inv") else t, "q_proj.* has shape"),
        ("fp8 of blocks", lambda key, t: t[:, :0] if key.endswith("q_proj.weight_scale_inv") else t, "in blocks of"),
        ("fp8 of blocks", lambda key, t: t[:, :2] if key.endswith("down_proj.weight_scale_inv") else t, "in blocks of"),
        ("w4a16", lambda key, t: t[:, :0] if key.endswith("q_proj.weight_scale") else t, "0 groups of 64 inputs"),
        ("w4a16", lambda key, t: t[:, [0, 1, 1]] if key.endswith("q_proj.weight_scale") else t, "3 groups of 64"),
        ("w4a16", lambda key, t: t[:, [0] * 128] if key.endswith("q_proj.weight_scale") else t, "128 groups of 64"),
        (
            "w4a16 with zero points",
            lambda key, t: t.float() if key.endswith("q_proj.weight_zero_point") else t,
            "what is stored of '.*q_proj.weight' does not fit together",
        ),
        ("awq", lambda key, t: t[:, :-1] if key.endswith("q_proj.qzeros") else t, "q_proj.qzeros' has shape"),
        ("awq", lambda key, t: t.float() if key.endswith("q_proj.qzeros") else t, "does not fit together"),
        ("awq", lambda key, t: t[0] if key.endswith("q_proj.qzeros") else t, "does not fit together"),
        ("gptq", lambda key, t: t[:0] if key.endswith("q_proj.g_idx") else t, "groups of .*q_proj.* are not below 2"),
        ("nf4", lambda key, t: t[:-1] if key.endswith("q_proj.weight.absmax") else t, "does not fit together"),
        ("nf4", lambda key, t: t[:3] if key.endswith("q_proj.weight.quant_map") else t, "does not fit together"),
        (
            "nf4, nested",
            lambda key, t: t[:3] if key.endswith("q_proj.weight.nested_quant_map") else t,
            "does not fit together",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    case: str, change: Callable[[str, torch.Tensor], Any], message: str, plain: Path, tmp_path: Path
) -> None:
    config, writer, _ = CASES[case]
    write(plain, tmp_path, config, writer)
    path = tmp_path / "stored" / "model.safetensors"
    changed = {key: change(key, tensor) for key, tensor in load_file(path).items()}
    save_file({key: tensor.contiguous() for key, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(ModelError, match=message):
        ModelRunner.load(tmp_path / "stored", num_pages=4)


ODD = [
    {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": [1]},
    {"quant_method": "compressed-tensors", "format": "int-quantized", "sparsity_config": "dense"},
    compressed_config("int-quantized", {**INT8, "num_bits": "many"}),
    compressed_config("float-quantized", {**FP8, "block_structure": 7}),
    compressed_config("float-quantized", {**FP8, "block_structure": [[1], [2]]}),
]


@pytest.mark.parametrize("config", ODD)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_settings_that_cannot_be_read_are_said_to_be_so(
    config: dict[str, Any], architecture: str, plain: Path, tmp_path: Path
) -> None:
    raw = {**json.loads((plain / "config.json").read_text()), "architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps({**raw, "quantization_config": config}))
    for read in (glance, way_of):
        with pytest.raises(ModelError, match="quantization_config: a value in it cannot be read"):
            read(tmp_path)


def test_sizes_of_blocks_that_a_checkpoint_makes_up_take_no_memory(plain: Path, tmp_path: Path) -> None:
    for number, (case, change) in enumerate(
        [
            ("nf4", {"blocksize": 1 << 40}),
            ("nf4", {"blocksize": 0}),
            ("nf4", {"blocksize": -64}),
            ("nf4, nested", {"nested_blocksize": 1}),
            ("nf4, nested", {"nested_blocksize": -1}),
        ]
    ):
        (folder := tmp_path / str(number)).mkdir()
        config, writer, _ = CASES[case]
        write(plain, folder, config, writer)
        path = folder / "stored" / "model.safetensors"
        held = load_file(path)
        key = next(name for name in held if "q_proj.weight.quant_state" in name)
        facts = {**json.loads(bytes(held[key].tolist())), **change}
        held[key] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
        save_file(held, path)
        with pytest.raises(ModelError, match="does not fit together"):
            ModelRunner.load(folder / "stored", num_pages=4)
