"""Rotary embedding as a `config.json` describes it, and the one set of frequencies that a model is served with.

Two of the ways to stretch it (`dynamic`, `longrope`) let the frequencies depend on how long a sequence is.  Keys that
are in pages cannot be rotated anew when their sequence grows, and pages are shared by sequences of any length: so the
frequencies are those of a sequence as long as the context that is served, for all sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pieray.errors import ModelError

#: rope_type -> the numbers that it needs
NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": (),
}
#: names of before
ALIASES = {"su": "longrope"}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding of one kind of layer, for one length of context.

    `kind` is "default" ("dynamic" too, with another `theta`), "linear", "llama3", "yarn" or "longrope".  Cosines and
    sines are multiplied by `attention_factor`.  longrope has a divisor for each rotated pair.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    divisors: tuple[float, ...] = ()


class RopeReader:
    """Reads `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of transformers 4."""

    def __init__(self, raw: Mapping[str, Any], file: str, max_position: int, head_dim: int, context: int = 0) -> None:
        """`max_position` is the config's; `context` the number of positions to serve, 0: `max_position`."""
        self.raw = raw
        self.file = file
        self.max_position = max_position
        self.head_dim = head_dim
        self.context = context or max_position
        self.key = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
        given = raw.get(self.key) or {}
        if not isinstance(given, dict):
            raise ModelError(f"{file}: {self.key} is {given!r}; supported: an object")
        self.given: Mapping[str, Any] = given

    def plain(self) -> RopeConfig:
        """The one of all layers."""
        if any(isinstance(value, dict) for value in self.given.values()):
            self._refuse("rope_type", "per layer", " or ".join(NEEDED))
        return self._config(self.given, self.raw.get("rope_theta", 10000.0))

    def by_layer_type(self) -> dict[str, RopeConfig]:
        """Those of layers of full and of sliding attention; files of transformers 4 scale only the first (Gemma 3)."""
        theta, local_theta = self.raw.get("rope_theta", 1e6), self.raw.get("rope_local_base_freq", 1e4)
        if isinstance(self.given.get("full_attention"), dict):
            full, sliding = self.given["full_attention"], self.given.get("sliding_attention") or {}
        else:
            full, sliding = self.given, {}
        return {"full_attention": self._config(full, theta), "sliding_attention": self._config(sliding, local_theta)}

    def longest(self) -> int:
        """How many positions can be served: scaling by a factor reaches beyond what the config calls its maximum."""
        if any(isinstance(value, dict) for value in self.given.values()) or self._kind(self.given) not in (
            "dynamic",
            "yarn",
        ):
            return self.max_position
        base = self.max_position if self._kind(self.given) == "dynamic" else self._original(self.given)
        return max(self.max_position, int(base * self._positive(self.given, "factor", 1.0)))

    def _kind(self, given: Mapping[str, Any]) -> str:
        kind = str(given.get("rope_type") or given.get("type") or "default")
        return ALIASES.get(kind, kind)

    def _original(self, given: Mapping[str, Any]) -> int:
        key = "original_max_position_embeddings"
        value = self.raw.get(key) or given.get(key) or self.max_position
        if not _is_number(value) or value < 1:
            self._refuse(key, value, "a positive integer")
        return int(value)

    def _positive(self, given: Mapping[str, Any], name: str, default: float) -> float:
        """A number greater than 0; where the file has none, or null, it is `default`."""
        value = given.get(name)
        value = default if value is None else value
        if not _is_number(value) or value <= 0:
            self._refuse(name, value, "a number greater than 0")
        return float(value)

    def _config(self, given: Mapping[str, Any], theta: Any) -> RopeConfig:
        kind = self._kind(given)
        if kind not in NEEDED:
            self._refuse("rope_type", kind, " or ".join(NEEDED))
        partial = given.get("partial_rotary_factor", self.raw.get("partial_rotary_factor", 1.0))
        if partial != 1.0:
            raise ModelError(f"{self.file}: partial_rotary_factor is {partial!r}; supported: 1.0")
        for name in NEEDED[kind]:
            if not _is_number(given.get(name)):
                self._refuse(name, given.get(name), f"a number (rope_type {kind})")
        base = given.get("rope_theta") or theta
        if not _is_number(base) or base <= 0:
            raise ModelError(f"{self.file}: rope_theta is {base!r}; supported: a number greater than 0")
        plain = RopeConfig(theta=float(base), factor=self._positive(given, "factor", 1.0))
        match kind:
            case "default":
                return RopeConfig(theta=plain.theta)
            case "linear":
                return RopeConfig(theta=plain.theta, kind=kind, factor=plain.factor)
            case "dynamic":
                return RopeConfig(theta=self._stretched(plain))
            case "llama3":
                return RopeConfig(
                    theta=plain.theta,
                    kind=kind,
                    factor=plain.factor,
                    low_freq_factor=float(given["low_freq_factor"]),
                    high_freq_factor=float(given["high_freq_factor"]),
                    original_max_position=self._original(given),
                )
            case "yarn":
                return self._yarn(given, plain)
        return self._longrope(given, plain)

    def _stretched(self, plain: RopeConfig) -> float:
        """theta of `dynamic` (NTK) for the context; up to the config's own maximum it is the plain one."""
        ratio = max(self.context, self.max_position) / self.max_position
        power = self.head_dim / (self.head_dim - 2)
        return float(plain.theta * (plain.factor * ratio - (plain.factor - 1)) ** power)

    def _yarn(self, given: Mapping[str, Any], plain: RopeConfig) -> RopeConfig:
        """Peng et al. 2023."""
        attention = given.get("attention_factor")
        if attention is None:
            scale, all_dim = (given.get(name) for name in ("mscale", "mscale_all_dim"))
            for name in ("mscale", "mscale_all_dim"):
                if given.get(name) is not None and not _is_number(given[name]):
                    self._refuse(name, given[name], "a number")
            attention = _mscale(plain.factor, scale) / _mscale(plain.factor, all_dim) if scale and all_dim else None
        return RopeConfig(
            theta=plain.theta,
            kind="yarn",
            factor=plain.factor,
            original_max_position=self._original(given),
            attention_factor=self._positive(
                {"attention_factor": attention}, "attention_factor", _mscale(plain.factor, 1)
            ),
            beta_fast=self._positive(given, "beta_fast", 32),
            beta_slow=self._positive(given, "beta_slow", 1),
            is_truncated=bool(given.get("truncate", True)),
        )

    def _longrope(self, given: Mapping[str, Any], plain: RopeConfig) -> RopeConfig:
        """Ding et al. 2024."""
        original = self._original(given)
        name = "long_factor" if self.context > original else "short_factor"
        divisors = given.get(name)
        is_right = isinstance(divisors, list) and len(divisors) == self.head_dim // 2
        if not is_right or not all(_is_number(one) and one > 0 for one in divisors or ()):
            self._refuse(name, divisors, f"a list of {self.head_dim // 2} numbers greater than 0 (rope_type longrope)")
        factor = self._positive(given, "factor", self.max_position / original)
        attention = given.get("attention_factor")
        if attention is None:
            attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return RopeConfig(
            theta=plain.theta,
            kind="longrope",
            factor=factor,
            original_max_position=original,
            attention_factor=self._positive({"attention_factor": attention}, "attention_factor", 1.0),
            divisors=tuple(float(one) for one in divisors),  # type: ignore[union-attr]
        )

    def _refuse(self, name: str, value: object, supported: str) -> None:
        raise ModelError(f"{self.file}: {self.key}.{name} is {value!r}; supported: {supported}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
