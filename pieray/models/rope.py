"""Rotary position embedding, as transformers computes it (Su et al. 2021), with the ways to stretch it."""

from __future__ import annotations

import math

import torch

from pieray.models.rope_config import RopeConfig


class RopeTables:
    """cos and sin by position, each float32 [num_positions, head_dim / 2], on one device; made once for each
    `RopeConfig`.  None is a layer that rotates nothing: cosines of 1, sines of 0."""

    def __init__(self, head_dim: int, num_positions: int, device: torch.device | str) -> None:
        self.head_dim = head_dim
        self.num_positions = num_positions
        self.device = device
        self._made: dict[RopeConfig | None, tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, rope: RopeConfig | None) -> tuple[torch.Tensor, torch.Tensor]:
        if rope not in self._made:
            self._made[rope] = self._tables(rope)
        return self._made[rope]

    def _tables(self, rope: RopeConfig | None) -> tuple[torch.Tensor, torch.Tensor]:
        if rope is None:
            shape = self.num_positions, self.head_dim // 2
            return torch.ones(shape, device=self.device), torch.zeros(shape, device=self.device)
        angles = torch.arange(self.num_positions).float()[:, None] * inverse_frequencies(rope, self.head_dim)
        cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
        return cos.to(self.device), sin.to(self.device)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """float32 [head_dim / 2]: radians per position of each rotated pair."""
    wavelengths = rope.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    match rope.kind:
        case "linear":
            return 1.0 / wavelengths / rope.factor
        case "llama3":
            return _llama3(1.0 / wavelengths, rope)
        case "yarn":
            return _yarn(wavelengths, rope, head_dim)
        case "longrope":
            return 1.0 / (torch.tensor(rope.divisors) * wavelengths)
    return 1.0 / wavelengths


def _llama3(plain: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    low, high = rope.low_freq_factor, rope.high_freq_factor
    blend = ((rope.original_max_position / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def _yarn(wavelengths: torch.Tensor, rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Pairs that turn often within the original context are kept, those that hardly turn are stretched by `factor`, and
    a ramp of pairs lies between."""
    low, high = (_pair_that_turns(times, rope, head_dim) for times in (rope.beta_fast, rope.beta_slow))
    if rope.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0
    ramp = ((torch.arange(head_dim // 2).float() - low) / (high - low)).clamp(0, 1)
    return ramp / (rope.factor * wavelengths) + (1 - ramp) / wavelengths


def _pair_that_turns(times: float, rope: RopeConfig, head_dim: int) -> float:
    """Which pair turns so many times within the original context."""
    ratio = rope.original_max_position / (times * 2 * math.pi)
    return head_dim * math.log(ratio) / (2 * math.log(rope.theta))
