"""What a `config.json` says, reduced to the numbers that a decoder computes with.

Reads the layouts of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).  Whatever the native
decoders cannot compute exactly is refused here, before a weight is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pieray.errors import ModelError
from pieray.models.architectures import ARCHITECTURES, Architecture, OddValue, whole_number
from pieray.models.rope_config import RopeConfig, RopeReader
from pieray.models.stored_formats import StoredFormat

#: hidden_act -> what a decoder computes
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
LAYER_TYPES = {"sliding_attention", "full_attention"}
NO_WINDOW = 0


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts: each token goes through `num_per_token` of `num_experts`, and through one shared expert
    of width `shared_width` (0: there is none).  `layers` says which layers have it."""

    num_experts: int
    num_per_token: int
    width: int
    shared_width: int
    are_weights_normalized: bool
    layers: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and switches of one model.

    `windows[layer]` is the number of most recent slots that a row of the layer sees, itself included;
    `NO_WINDOW` means all.  `layer_ropes`, where layers differ, has each layer's; None is a layer that rotates nothing.
    `eos_ids` comes from the config alone; `TokenizerSpec` knows the generation config.
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
    qk_norm: str = ""  # see `Architecture.qk_norm`
    tie_embeddings: bool = False
    dtype: str = "float32"
    eos_ids: tuple[int, ...] = ()
    architecture: str = "LlamaForCausalLM"
    layer_ropes: tuple[RopeConfig | None, ...] = ()
    activation: str = "silu"
    embed_scale: float = 1.0  # of the embeddings of tokens
    input_scale: float = 1.0  # of embeddings of tokens and of those given in their place
    residual_scale: float = 1.0
    attention_scale: float = 0.0  # 0: 1 / sqrt(head_dim)
    attention_softcap: float = 0.0  # 0: none
    logits_divisor: float = 1.0
    logits_softcap: float = 0.0
    experts: ExpertsConfig | None = None
    is_scoring: bool = False  # states become scores; embeddings stand in for the head that there is not
    stored: StoredFormat | None = None  # how matrices are stored if not as floats
    has_shifts: bool = False  # positions run on otherwise behind an image: see `KvPool.shifts`

    @property
    def num_pool_layers(self) -> int:
        """Layers of the page pool."""
        return self.num_layers + self.has_shifts

    @property
    def softmax_scale(self) -> float:
        """What scores of attention are multiplied by."""
        return self.attention_scale or float(self.head_dim**-0.5)

    @property
    def step_numbers(self) -> int:
        """Weights that a step of one token reads: all matrices but the embedding."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * 2 * (heads + kv_heads)
        widths = [self.intermediate_size] * self.num_layers
        if self.experts is not None:
            mixed = self.experts.num_per_token * self.experts.width + self.experts.shared_width
            widths = [mixed if is_mixed else self.intermediate_size for is_mixed in self.experts.layers]
        mlps = 3 * self.hidden_size * sum(widths)
        return self.num_layers * attention + mlps + self.vocab_size * self.hidden_size

    def rope_of(self, layer: int) -> RopeConfig | None:
        return self.layer_ropes[layer] if self.layer_ropes else self.rope

    @classmethod
    def from_folder(cls, folder: str | Path, max_context: int = 0) -> ModelConfig:
        """Read `folder/config.json`, for contexts of `max_context` tokens (0: as long as the file says).

        Raises ModelError that names the file, the key and what is supported.
        """
        path = Path(folder) / "config.json"
        raw = read_json(path)
        with readable(str(path)):
            return _Reader(raw, str(path)).config(max_context)


@contextmanager
def readable(file: str) -> Iterator[None]:
    """Whatever else reading of values in `file` fails with becomes a ModelError that names the file."""
    try:
        yield
    except OddValue as error:
        raise ModelError(f"{file}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise ModelError(f"{file}: a value in it cannot be read: {type(error).__name__}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a `config.json`; ModelError says what is wrong with it."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; a model folder holds config.json and *.safetensors") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: expected an object, found {type(raw).__name__}")
    return raw


def architecture_name(raw: Mapping[str, Any]) -> str | None:
    """The first of `architectures`."""
    names = raw.get("architectures") or [None]
    name = names[0] if isinstance(names, list) else names
    return None if name is None else str(name)


SCORING, CAUSAL = "ForSequenceClassification", "ForCausalLM"


def causal_name(name: str | None) -> str | None:
    """The class of the same decoder that predicts the next token, of one that scores texts; others as they are."""
    return name.removesuffix(SCORING) + CAUSAL if name is not None and name.endswith(SCORING) else name


def is_scoring(raw: Mapping[str, Any]) -> bool:
    """Whether the model scores texts: see scores.py.  It has no head for the next token."""
    return (architecture_name(raw) or "").endswith(SCORING)


class _Reader:
    """One pass over the keys of a `config.json`; every complaint names file, key and value."""

    def __init__(self, raw: Mapping[str, Any], file: str) -> None:
        self.file = file
        name = causal_name(architecture_name(raw))
        if name not in ARCHITECTURES:
            self._refuse("architectures", architecture_name(raw), " or ".join(sorted(ARCHITECTURES)))
        self.name = str(name)
        self.facts: Architecture = ARCHITECTURES[self.name]
        self.raw = {**self.facts.defaults, **raw}

    def config(self, max_context: int) -> ModelConfig:
        facts = self.facts
        if self.raw.get("use_bidirectional_attention"):
            self._refuse("use_bidirectional_attention", True, "causal attention")
        num_layers, num_heads = self._count("num_hidden_layers"), self._count("num_attention_heads")
        num_kv_heads = self._count("num_key_value_heads", num_heads)  # null means so too
        if num_heads % num_kv_heads:
            self._refuse("num_key_value_heads", num_kv_heads, f"a divisor of num_attention_heads = {num_heads}")
        hidden_size = self._count("hidden_size")
        head_dim = self._count("head_dim", int(facts.defaults.get("head_dim", hidden_size // num_heads)))
        if head_dim % 2:
            self._refuse("head_dim", head_dim, "an even number")
        max_position = self._count("max_position_embeddings")
        ropes = RopeReader(self.raw, self.file, max_position, head_dim, max_context)
        if max_context > ropes.longest():
            raise ModelError(
                f"{self.file}: a context of {max_context} tokens; max_position_embeddings is {max_position}, "
                f"and {ropes.longest()} can be served"
            )
        windows = self._windows(num_layers)
        rope, layer_ropes = self._ropes(ropes, windows)
        return ModelConfig(
            family=facts.family,
            architecture=self.name,
            vocab_size=self._count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=self._count("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_position=ropes.context,
            rms_eps=self._number("rms_norm_eps", 1e-6),
            rope=rope,
            layer_ropes=layer_ropes,
            windows=windows,
            qkv_bias=facts.has_qkv_bias or self._flag(facts.attention_bias),
            out_bias=self._flag(facts.out_bias),
            mlp_bias=self._flag(facts.mlp_bias),
            qk_norm=facts.qk_norm,
            tie_embeddings=self._flag("tie_word_embeddings") or is_scoring(self.raw),
            is_scoring=is_scoring(self.raw),
            dtype=str(self.raw.get("dtype") or self.raw.get("torch_dtype") or "float32"),
            eos_ids=token_ids(self.raw.get("eos_token_id")),
            activation=self._activation(),
            embed_scale=hidden_size**0.5 if facts.scales_embedding else 1.0,
            input_scale=self._factor(facts.embedding_multiplier),
            residual_scale=self._factor(facts.residual_multiplier),
            attention_scale=self._attention_scale(),
            attention_softcap=self._softcap(facts.attention_softcap),
            logits_divisor=self._divisor(facts.logits_divisor),
            logits_softcap=self._softcap(facts.logits_softcap),
            experts=self._experts(num_layers),
            stored=StoredFormat.from_config(self.raw, self.file),
        )

    def _activation(self) -> str:
        name = self.raw.get(self.facts.activation, "silu")
        if not isinstance(name, str) or name not in ACTIVATIONS:
            self._refuse(self.facts.activation, name, " or ".join(ACTIVATIONS))
        return ACTIVATIONS[name]

    def _ropes(self, ropes: RopeReader, windows: tuple[int, ...]) -> tuple[RopeConfig, tuple[RopeConfig | None, ...]]:
        if self.facts.has_local_rope:
            both = ropes.by_layer_type()
            full, local = both["full_attention"], both["sliding_attention"]
            return full, tuple(local if kind == "sliding_attention" else full for kind in self._kinds(len(windows)))
        rope = ropes.plain()
        found = tuple(rope if self.facts.rotates(self.raw, layer) else None for layer in range(len(windows)))
        return rope, found if None in found else ()

    def _kinds(self, num_layers: int) -> list[str]:
        """Of each layer, one of LAYER_TYPES."""
        given = self.raw.get("layer_types") if self.facts.reads_layer_types else None
        if given is None:
            windowed = (self.facts.is_windowed(self.raw, layer) for layer in range(num_layers))
            return ["sliding_attention" if one else "full_attention" for one in windowed]
        if (
            not isinstance(given, list)
            or len(given) != num_layers
            or any(one not in LAYER_TYPES for one in map(str, given))
        ):
            self._refuse("layer_types", given, f"{num_layers} of sliding_attention or full_attention")
        return list(given)

    def _windows(self, num_layers: int) -> tuple[int, ...]:
        switch = self.facts.window_switch
        if switch and not self._flag(switch):
            return (NO_WINDOW,) * num_layers
        size = NO_WINDOW
        if self.raw.get("sliding_window") is not None:
            size = whole_number(self.raw, "sliding_window", NO_WINDOW, 0)
        return tuple(size if kind == "sliding_attention" else NO_WINDOW for kind in self._kinds(num_layers))

    def _experts(self, num_layers: int) -> ExpertsConfig | None:
        facts = self.facts
        if facts.experts is None:
            return None
        step, dense = whole_number(self.raw, "decoder_sparse_step", 1), self.raw.get("mlp_only_layers") or []
        if not isinstance(dense, list):
            self._refuse("mlp_only_layers", dense, "a list of layers")
        num_experts = self._count("num_local_experts", self.raw["num_experts"])  # either name
        num_per_token = self._count("num_experts_per_tok")
        if num_per_token > num_experts:
            self._refuse("num_experts_per_tok", num_per_token, f"at most the number of experts, {num_experts}")
        return ExpertsConfig(
            num_experts=num_experts,
            num_per_token=num_per_token,
            width=self._count(facts.experts_width),
            shared_width=self._count(facts.shared_width) if facts.shared_width else 0,
            are_weights_normalized=facts.are_weights_normalized or self._flag("norm_topk_prob"),
            layers=tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers)),
        )

    def _attention_scale(self) -> float:
        key = self.facts.query_scalar or self.facts.attention_multiplier
        if not key:
            return 0.0
        value = self._number(key, 0.0)
        if value <= 0:
            self._refuse(key, value, "a number greater than 0")
        return float(value**-0.5) if self.facts.query_scalar else value

    def _flag(self, key: str) -> bool:
        value = self.raw.get(key) if key else None
        if value is not None and not isinstance(value, bool):
            self._refuse(key, value, "true or false")
        return bool(value)

    def _factor(self, key: str) -> float:
        return self._number(key, 1.0) if key else 1.0

    def _divisor(self, key: str) -> float:
        value = self._factor(key)
        if not value:
            self._refuse(key, value, "a number other than 0")
        return value

    def _softcap(self, key: str) -> float:
        return self._number(key, 0.0) if key and self.raw.get(key) is not None else 0.0

    def _count(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self._refuse(key, value, "a positive integer")
        return int(value)  # type: ignore[arg-type]

    def _number(self, key: str, default: float) -> float:
        value = self.raw.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            self._refuse(key, value, "a number")
        return float(value)

    def _refuse(self, key: str, value: object, supported: str) -> None:
        raise ModelError(f"{self.file}: {key} is {value!r}; supported: {supported}")


def token_ids(value: object) -> tuple[int, ...]:
    """An `eos_token_id` as it stands in a config (null, a number or a list) as a tuple; OddValue for another thing."""
    if value is None:
        return ()
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in found):
        raise OddValue(f"eos_token_id is {value!r}; supported: null, a number or a list of numbers")
    return tuple(found)
