"""What a decoder computes between its matrix products, by whatever suits the device."""

from __future__ import annotations

from typing import Protocol, cast

import torch

from pieray.kernels import decoder_torch
from pieray.kernels.meta import AttentionMeta
from pieray.kernels.paged_attention_cpu import paged_attention_cpu


class LayerOps(Protocol):
    """The functions of decoder_torch.py; see there."""

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def gated(self, wide: torch.Tensor, activation: str = "silu") -> torch.Tensor: ...

    def rope_append(
        self,
        heads: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        positions: torch.Tensor,
        kv_layer: torch.Tensor,
        slots: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor] | None,
        eps: float,
    ) -> None: ...


def layer_ops(device: torch.device) -> LayerOps:
    """Triton's on CUDA, torch's elsewhere."""
    if device.type != "cuda":
        return cast(LayerOps, decoder_torch)
    from pieray.kernels import decoder_triton

    return cast(LayerOps, decoder_triton)


def attention(
    q: torch.Tensor,
    kv_layer: torch.Tensor,
    meta: AttentionMeta,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T + mask) v for each row of q [T, num_heads, head_dim]; returns the same shape and dtype.

    `kv_layer` is [num_pages, 2, num_kv_heads, page_size, head_dim], in the dtype of q or in E4M3. `window` counts the
    slots a row sees, itself included, 0 = all; `scale` defaults to head_dim ** -0.5. With a `softcap` scores become
    softcap * tanh(score / softcap) (Gemma 2). `sinks`, float32 [num_heads], are scores that take part in the softmax
    of each head and have no value (GPT-OSS). A row whose mask hides everything gives 0.
    Triton on CUDA; elsewhere the C operator, or torch where there is no C compiler.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.is_cuda:
        from pieray.kernels.paged_attention import paged_attention

        return paged_attention(q, kv_layer, meta, scale=scale, window=window, softcap=softcap, sinks=sinks)
    return paged_attention_cpu(q, kv_layer, meta, scale=scale, window=window, softcap=softcap, sinks=sinks)
