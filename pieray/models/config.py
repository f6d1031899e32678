"""What a `config.json` says, reduced to the numbers that the decoder computes with.

Reads the layouts of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).  Whatever the
decoder cannot compute exactly is refused here, before a weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pieray.errors import ModelError

#: architecture -> family
ARCHITECTURES: dict[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
#: what transformers assumes where the file is silent; else as many kv heads as heads, and hidden_size / num_heads
DEFAULT_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
DEFAULT_HEAD_DIM = {"qwen3": 128}
ROPE_TYPES = ("default", "linear", "llama3")
ACTIVATIONS = ("silu", "swish")
NO_WINDOW = 0


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: `kind` is one of ROPE_TYPES; the last four fields only matter to `linear` and `llama3`."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and switches of one decoder.

    `windows[layer]` is the number of most recent slots that a row of the layer sees, itself included;
    `NO_WINDOW` means all.  `eos_ids` comes from the config alone; `TokenizerSpec` knows the generation config.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_eps: float
    rope: RopeConfig
    windows: tuple[int, ...]
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    dtype: str = "float32"
    eos_ids: tuple[int, ...] = ()

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read `folder/config.json`.  Raises ModelError that names the file, the key and what is supported."""
        path = Path(folder) / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; a model folder holds config.json and *.safetensors") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: not readable as JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ModelError(f"{path}: expected an object, found {type(raw).__name__}")
        return _Reader(raw, str(path)).config()


class _Reader:
    """One pass over the keys of a `config.json`; every complaint names file, key and value."""

    def __init__(self, raw: Mapping[str, Any], file: str) -> None:
        self.raw = raw
        self.file = file

    def config(self) -> ModelConfig:
        family = self._family()
        self._refuse_unsupported()
        num_layers, num_heads = self._count("num_hidden_layers"), self._count("num_attention_heads")
        num_kv_heads = self._count("num_key_value_heads", DEFAULT_KV_HEADS.get(family, num_heads))
        if num_heads % num_kv_heads:
            self._refuse("num_key_value_heads", num_kv_heads, f"a divisor of num_attention_heads = {num_heads}")
        hidden_size = self._count("hidden_size")
        head_dim = self._count("head_dim", DEFAULT_HEAD_DIM.get(family, hidden_size // num_heads))
        if head_dim % 2:
            self._refuse("head_dim", head_dim, "an even number")
        attention_bias = family in ("llama", "qwen3") and bool(self.raw.get("attention_bias"))
        return ModelConfig(
            family=family,
            vocab_size=self._count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=self._count("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_position=self._count("max_position_embeddings"),
            rms_eps=self._number("rms_norm_eps", 1e-6),
            rope=self._rope(),
            windows=self._windows(family, num_layers),
            qkv_bias=family == "qwen2" or attention_bias,
            out_bias=attention_bias,
            mlp_bias=family == "llama" and bool(self.raw.get("mlp_bias")),
            qk_norm=family == "qwen3",
            tie_embeddings=bool(self.raw.get("tie_word_embeddings")),
            dtype=str(self.raw.get("dtype") or self.raw.get("torch_dtype") or "float32"),
            eos_ids=token_ids(self.raw.get("eos_token_id")),
        )

    def _family(self) -> str:
        names = self.raw.get("architectures") or [None]
        name = names[0] if isinstance(names, list) else names
        if name not in ARCHITECTURES:
            self._refuse("architectures", name, " or ".join(sorted(ARCHITECTURES)))
        return ARCHITECTURES[str(name)]

    def _refuse_unsupported(self) -> None:
        activation = self.raw.get("hidden_act", "silu")
        if activation not in ACTIVATIONS:
            self._refuse("hidden_act", activation, " or ".join(ACTIVATIONS))
        quantization = self.raw.get("quantization_config")
        if quantization:
            method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else quantization
            self._refuse("quantization_config", method, "unquantized float32, float16 or bfloat16 weights")

    def _rope(self) -> RopeConfig:
        key = "rope_parameters" if isinstance(self.raw.get("rope_parameters"), dict) else "rope_scaling"
        given = self.raw.get(key) or {}
        kind = given.get("rope_type") or given.get("type") or "default"
        if kind not in ROPE_TYPES or any(isinstance(value, dict) for value in given.values()):
            self._refuse(f"{key}.rope_type", kind if kind not in ROPE_TYPES else "per layer", " or ".join(ROPE_TYPES))
        partial = given.get("partial_rotary_factor", self.raw.get("partial_rotary_factor", 1.0))
        if partial != 1.0:
            self._refuse("partial_rotary_factor", partial, "1.0")
        theta = given.get("rope_theta", self.raw.get("rope_theta", 10000.0))
        needed = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(kind, ())
        for name in needed:
            if not isinstance(given.get(name), int | float):
                self._refuse(f"{key}.{name}", given.get(name), f"a number (rope_type {kind})")
        return RopeConfig(
            theta=float(theta),
            kind=kind,
            factor=float(given.get("factor", 1.0)),
            low_freq_factor=float(given.get("low_freq_factor", 1.0)),
            high_freq_factor=float(given.get("high_freq_factor", 4.0)),
            original_max_position=int(given.get("original_max_position_embeddings") or 8192),
        )

    def _windows(self, family: str, num_layers: int) -> tuple[int, ...]:
        """Mistral windows every layer; Qwen those of `layer_types`, else all from `max_window_layers` on."""
        size = int(self.raw.get("sliding_window", 4096) or NO_WINDOW)
        if family == "mistral":
            return (size,) * num_layers
        if family == "llama" or not self.raw.get("use_sliding_window"):
            return (NO_WINDOW,) * num_layers
        kinds = self.raw.get("layer_types")
        if kinds is None:
            first = int(self.raw.get("max_window_layers", 28))
            kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
        if len(kinds) != num_layers or set(kinds) - {"sliding_attention", "full_attention"}:
            self._refuse("layer_types", kinds, f"{num_layers} of sliding_attention or full_attention")
        return tuple(size if kind == "sliding_attention" else NO_WINDOW for kind in kinds)

    def _count(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self._refuse(key, value, "a positive integer")
        return int(value)  # type: ignore[arg-type]

    def _number(self, key: str, default: float) -> float:
        value = self.raw.get(key, default)
        if not isinstance(value, int | float):
            self._refuse(key, value, "a number")
        return float(value)

    def _refuse(self, key: str, value: object, supported: str) -> None:
        raise ModelError(f"{self.file}: {key} is {value!r}; supported: {supported}")


def token_ids(value: object) -> tuple[int, ...]:
    """An `eos_token_id` as it stands in a config (null, a number or a list) as a tuple."""
    if value is None:
        return ()
    return tuple(int(item) for item in value) if isinstance(value, list) else (int(str(value)),)
