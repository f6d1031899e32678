"""LoRA adapters as files and as facts (Hu et al. 2021): read by clients and batchers, without torch."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pieray.errors import InvalidRequest, ModelError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MAX_CONFIG = 1 << 20
"""Bytes of an adapter_config.json."""
MAX_NAME = 128
UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "arrow_config",
    "use_bdlora",
)
"""Settings of PEFT that change what an adapter computes, and are not computed here."""
HARMLESS = frozenset(
    (
        "peft_type",
        "bias",
        "lora_alpha",
        "use_rslora",
        "init_lora_weights",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
    )
)
"""Settings that are applied, or that the tensors tell, or that training alone needs."""
UNCHANGED = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin the training that leave the base model's weights as they are (PiSSA, OLoRA, LoftQ, CorDA do not)."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter as it travels: safetensors bytes, named as PEFT names its tensors, and how they are scaled."""

    name: str
    data: bytes
    alpha: float = 0.0  # 0: the rank
    is_rank_stabilized: bool = False  # scaled by alpha / sqrt(rank) (Kalajdzievski 2023), not alpha / rank
    source: str = ""  # where it was read, for errors

    def digest(self) -> str:
        """Of all that what it computes depends on: weights and scaling; 64 hex digits."""
        found = hashlib.sha256(struct.pack("<d?", self.alpha, self.is_rank_stabilized))
        found.update(self.data)
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an InferletActor knows of an adapter that the engine's owner has loaded."""

    name: str
    number: int
    """The batcher's number for it."""
    rank: int
    """The greatest, where they differ."""
    alpha: float
    targets: tuple[str, ...]
    """"q_proj", "down_proj", ..."""
    num_bytes: int
    """On the device."""
    owner: str = ""
    """The tenant that may open it; "": all."""
    digest: str = ""
    """`AdapterFile.digest`."""

    def public(self) -> dict[str, Any]:
        """As guests and `pieray adapters` are told."""
        return {
            "name": self.name,
            "rank": self.rank,
            "alpha": self.alpha,
            "targets": list(self.targets),
            "num_bytes": self.num_bytes,
            "owner": self.owner,
            "digest": self.digest,
        }

    def to_wire(self) -> dict[str, Any]:
        return {"number": self.number, **self.public()}

    @classmethod
    def from_wire(cls, facts: Mapping[str, Any]) -> AdapterFacts:
        return cls(**{**facts, "targets": tuple(facts["targets"])})


def read_adapter(name: str, source: str | Path | bytes, alpha: float | None = None, *, max_bytes: int) -> AdapterFile:
    """An adapter from a safetensors file, from a folder as PEFT saves it, or from a file's bytes.

    A file of the name that PEFT gives it is read with the settings beside it.  `alpha` None: the folder's, else the
    rank.  Raises InvalidRequest (name, alpha), ModelError (the file).
    """
    check_name(name)
    check_alpha(alpha or 0.0)
    if isinstance(source, bytes):
        _check_size(f"adapter {name!r}", len(source), max_bytes)
        return AdapterFile(name, source, alpha or 0.0, source=f"adapter {name!r}")
    path, scaling = Path(source).expanduser(), (0.0, False)
    if path.is_dir():
        path = path / WEIGHTS
        scaling = _scaling(path.parent / CONFIG)
    elif path.name == WEIGHTS and (path.parent / CONFIG).exists():
        scaling = _scaling(path.parent / CONFIG)
    try:
        _check_size(str(path), path.stat().st_size, max_bytes)
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: an adapter is a safetensors file, or a folder with {WEIGHTS}: {error}") from error
    return AdapterFile(name, data, scaling[0] if alpha is None else alpha, scaling[1], source=str(path))


def check_name(name: str) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise InvalidRequest(f"an adapter's name has from 1 to {MAX_NAME} printable characters; given {name!r:.200}")


def check_alpha(alpha: float) -> None:
    if not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha >= 0):
        raise InvalidRequest(f"alpha is a finite number, 0 (the rank) or more; given {alpha!r}")


def _check_size(what: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ModelError(f"{what}: model.adapter_bytes is {max_bytes}; the file has {size} bytes")


def _scaling(path: Path) -> tuple[float, bool]:
    try:
        return scaling_of(path.read_bytes(), str(path))
    except OSError as error:
        raise ModelError(f"{path}: not readable: {error}") from error


def scaling_of(config: bytes, path: str) -> tuple[float, bool]:
    """(alpha, whether rank-stabilized) of an adapter_config.json; ModelError for what is not computed here.

    `path`: where it is, for errors.
    """
    if len(config) > MAX_CONFIG:
        raise ModelError(f"{path}: settings of an adapter have at most {MAX_CONFIG} bytes; given {len(config)}")
    try:
        raw = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: expected an object, found {type(raw).__name__}")
    for key, supported in (("peft_type", "LORA"), ("bias", "none")):
        if raw.get(key, supported) != supported:
            raise ModelError(f"{path}: {key} is {raw[key]!r}; supported: {supported!r}")
    for key in UNSUPPORTED:
        if raw.get(key):
            raise ModelError(f"{path}: {key} is {raw[key]!r}; supported: none")
    for key in sorted(raw.keys() - HARMLESS - {*UNSUPPORTED}):
        if raw[key]:
            raise ModelError(
                f"{path}: {key[:100]} is {raw[key]!r:.200}, and is not known here: take it out if it "
                "changes nothing of what the adapter computes"
            )
    if (how := raw.get("init_lora_weights", True)) not in UNCHANGED:
        raise ModelError(
            f"{path}: init_lora_weights is {how!r}, made for a changed base model; supported: one of "
            f"{UNCHANGED}, or an adapter converted to the model as it was"
        )
    alpha = raw.get("lora_alpha", 0.0)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha < 0:
        raise ModelError(f"{path}: lora_alpha is {alpha!r}; supported: a finite number, 0 or more")
    return float(alpha), bool(raw.get("use_rslora"))
