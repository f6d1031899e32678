"""The formats of quantized checkpoints, as `quantization_config` of a config.json names them: which are served.

Without torch; what they hold is read by dequantize.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pieray.errors import ModelError

COMPRESSED, FP8, GPTQ, AWQ, BITSANDBYTES = "compressed-tensors", "fp8", "gptq", "awq", "bitsandbytes"
SERVED = (
    "compressed-tensors (int-quantized and naive-quantized int8, float-quantized fp8, pack-quantized int4 and int8), "
    "fp8, gptq (2, 4 and 8 bits), awq (4 bits, gemm), bitsandbytes (int8, nf4, fp4)"
)
PACKED = "pack-quantized"
COMPRESSED_FORMATS = ("int-quantized", "float-quantized", "naive-quantized", PACKED, "dense")
#: behind the name of a module: what a matrix may be stored as, the matrix first
MATRIX_ENDS = (".weight", ".weight_packed", ".qweight")
OTHER_ENDS = (
    *(".weight_scale", ".weight_scale_inv", ".weight_zero_point", ".weight_shape", ".weight_g_idx", ".SCB"),
    *(".qzeros", ".scales", ".g_idx", ".weight.absmax", ".weight.quant_map"),
    *(".weight.nested_absmax", ".weight.nested_quant_map"),
)


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """How the matrices of a checkpoint are stored; those that are plain are read as such in any of them."""

    method: str
    bits: int = 8
    rounds_rows: bool = False  # to int8, each over its largest number, as products with int8 weights do here
    zero_offset: int = 0  # added to the zero points that are stored
    block: tuple[int, int] = (0, 0)  # outputs and inputs that share a scale, of fp8; 0: no blocks

    @classmethod
    def from_config(cls, raw: Mapping[str, Any], file: str) -> StoredFormat | None:
        """What `raw`, a config.json, says; None: weights are floats.  ModelError names what is not served, and all that
        is."""
        given = raw.get("quantization_config") or raw.get("compression_config")
        if not given:
            return None
        if not isinstance(given, Mapping):
            raise ModelError(f"{file}: quantization_config is {given!r}; supported: {SERVED}")
        method = str(given.get("quant_method", "?"))
        read = {COMPRESSED: _compressed, FP8: _fp8, GPTQ: _gptq, AWQ: _awq, BITSANDBYTES: _bitsandbytes}.get(
            method.replace("_", "-")
        )
        if read is None:
            raise _refusal(file, "quant_method", method)
        try:
            return read(given, file)
        except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
            raise ModelError(
                f"{file}: quantization_config: a value in it cannot be read: {type(error).__name__}: {error}"
            ) from error


def require_floats(raw: Mapping[str, Any], file: str) -> None:
    """Raise ModelError for a quantized checkpoint: of a model that runs through transformers' module."""
    form = StoredFormat.from_config(raw, file)
    if form is not None:
        raise ModelError(
            f"{file}: quantization_config: {form.method} checkpoints are served of models with a decoder of pieray's "
            f"own, which this one has not"
        )


def tensors_of(name: str, found: Collection[str]) -> list[str]:
    """The tensors of `found` that hold the matrix `name`, which ends with ".weight": that of numbers comes first; none
    if it is not there."""
    module = name.removesuffix(".weight")
    numbers = [module + end for end in MATRIX_ENDS if module + end in found][:1]
    return numbers + [module + end for end in OTHER_ENDS if module + end in found] if numbers else []


def _compressed(given: Mapping[str, Any], file: str) -> StoredFormat:
    form = str(given.get("format", "?"))
    if form not in COMPRESSED_FORMATS:
        raise _refusal(file, "format", form)
    if str((given.get("sparsity_config") or {}).get("format", "dense")) != "dense":
        raise _refusal(file, "sparsity_config", given["sparsity_config"].get("format"))
    if given.get("transform_config"):
        raise _refusal(file, "transform_config", "rotations of weights")
    groups = [one for one in (given.get("config_groups") or {}).values() if isinstance(one, Mapping)]
    weights = [one["weights"] for one in groups if isinstance(one.get("weights"), Mapping)]
    kinds = {(str(one.get("type", "int")), int(one.get("num_bits", 8))) for one in weights}
    if len(kinds) != 1:
        raise _refusal(file, "config_groups", f"weights of {sorted(kinds)}")
    ((kind, bits),) = kinds
    served = {("int", 4), ("int", 8)} if form == PACKED else {("int", 8), ("float", 8)}
    if (kind, bits) not in served:
        raise _refusal(file, "config_groups", f"{kind} weights of {bits} bits, {form}")
    rows = [one.get("input_activations") for one in groups]
    rounds = all(isinstance(one, Mapping) and one.get("num_bits") == 8 and one.get("type") == "int" for one in rows)
    shapes = {tuple(one.get("block_structure") or (0, 0)) for one in weights}
    if len(shapes) != 1:
        raise _refusal(file, "block_structure", sorted(shapes))
    block = _block(shapes.pop(), "block_structure", file)
    return StoredFormat(COMPRESSED, bits, rounds_rows=rounds and form != PACKED, block=block)


def _fp8(given: Mapping[str, Any], file: str) -> StoredFormat:
    if given.get("fmt", "e4m3") != "e4m3":
        raise _refusal(file, "fmt", given["fmt"])
    return StoredFormat(FP8, block=_block(given.get("weight_block_size") or (0, 0), "weight_block_size", file))


def _block(given: Any, key: str, file: str) -> tuple[int, int]:
    """Outputs and inputs of a block: both are numbers of some, or both 0."""
    if not isinstance(given, list | tuple) or len(given) != 2 or not all(isinstance(one, int) for one in given):
        raise _refusal(file, key, given)
    high, wide = given
    if not (high > 0 and wide > 0) and (high, wide) != (0, 0):
        raise _refusal(file, key, given)
    return high, wide


def _gptq(given: Mapping[str, Any], file: str) -> StoredFormat:
    bits, form = given.get("bits"), given.get("checkpoint_format", "gptq")
    if bits not in (2, 4, 8):
        raise _refusal(file, "bits", bits)
    if form not in ("gptq", "gptq_v2"):
        raise _refusal(file, "checkpoint_format", form)
    if given.get("dynamic"):
        raise _refusal(file, "dynamic", "settings by module")
    return StoredFormat(GPTQ, int(bits), zero_offset=form == "gptq")


def _awq(given: Mapping[str, Any], file: str) -> StoredFormat:
    bits, version = given.get("bits", given.get("w_bit")), str(given.get("version", "gemm")).lower()
    if bits != 4:
        raise _refusal(file, "bits", bits)
    if version != "gemm":
        raise _refusal(file, "version", version)
    return StoredFormat(AWQ, 4)


def _bitsandbytes(given: Mapping[str, Any], file: str) -> StoredFormat:
    if given.get("load_in_8bit") or given.get("_load_in_8bit"):
        return StoredFormat(BITSANDBYTES, 8)
    kind = given.get("bnb_4bit_quant_type", "fp4")
    if kind not in ("nf4", "fp4") or str(given.get("bnb_4bit_quant_storage", "uint8")) != "uint8":
        raise _refusal(file, "bnb_4bit_quant_type", f"{kind} stored as {given.get('bnb_4bit_quant_storage', 'uint8')}")
    return StoredFormat(BITSANDBYTES, 4)


def _refusal(file: str, key: str, value: object) -> ModelError:
    return ModelError(
        f"{file}: quantization_config: {key} is {value!r}; supported: weights of float32, float16 or bfloat16, {SERVED}"
    )
