"""Rotary position embedding, as transformers computes it (Su et al. 2021; Llama 3.1 for the scaled frequencies)."""

from __future__ import annotations

import math

import torch

from pieray.models.config import RopeConfig


def rope_tables(
    rope: RopeConfig, head_dim: int, num_positions: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each float32 [num_positions, head_dim / 2]."""
    angles = torch.arange(num_positions).float()[:, None] * inverse_frequencies(rope, head_dim)
    return angles.cos().to(device), angles.sin().to(device)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """float32 [head_dim / 2]: radians per position of each rotated pair."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(plain, rope)
    return plain


def _llama3(plain: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    low, high = rope.low_freq_factor, rope.high_freq_factor
    blend = ((rope.original_max_position / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain
