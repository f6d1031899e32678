"""A GraphedDecoder that runs on the CPU: what is captured is computed again, and torch draws as Triton does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pieray.kernels.meta import DrawColumns
from pieray.kernels.sample_cpu import CHOICE
from pieray.models import sampler
from pieray.models.decode_graphs import Compute, GraphedDecoder
from pieray.models.decoder import Decoder


def draw(
    logits: torch.Tensor, columns: DrawColumns, rows: torch.Tensor | None, tokens: torch.Tensor, is_bad: torch.Tensor
) -> None:
    """As sample_rows of kernels/sample_triton.py, by the filters that are its reference."""
    picked = logits if rows is None else logits[rows]
    choices = np.zeros(len(tokens), CHOICE)
    choices["temperature"], choices["top_p"] = columns.temperatures, columns.top_ps
    choices["min_p"], choices["top_k"] = columns.log_min_ps.double().exp(), columns.top_ks
    choices["typical_p"] = 1.0
    is_bad[:] = ~picked.amax(-1).isfinite()
    tokens[:] = picked.argmax(-1)
    drawn = np.flatnonzero((choices["temperature"] > 0) & ~is_bad.numpy().astype(bool))
    if len(drawn):
        scaled = sampler.filtered(picked[drawn], choices[drawn])
        running = scaled.double().exp().cumsum(-1)
        index = torch.searchsorted(running, columns.uniforms[drawn, None] * running[:, -1:], right=True)
        tokens[drawn] = index.clamp_max(logits.shape[-1] - 1)[:, 0]


def replayed(
    decoder: Decoder, capture: Callable[[Compute], Callable[[], object]] = lambda compute: compute
) -> GraphedDecoder:
    return GraphedDecoder(decoder, capture, draw)
