"""Paged attention on the CPU: the C operator, or torch where there is none; its reference is in paged_attention.py."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch

from pieray.kernels.cc import library
from pieray.kernels.cells import E4M3
from pieray.kernels.meta import AttentionMeta
from pieray.kernels.paged_attention_torch import paged_attention_torch

#: of a pool -> `kind` in paged_attention_cpu.c
POOL_KINDS = {torch.float32: 0, torch.bfloat16: 1, E4M3: 2}
MAX_HEAD_DIM = 256


class CLayer(ctypes.Structure):
    """`Layer` of paged_attention_cpu.c."""

    _fields_ = (
        ("kv", c_void_p),
        *((name, c_int64) for name in ("num_heads", "num_kv_heads", "head_dim", "page_size", "window")),
        ("scale", c_float),
        ("softcap", c_float),
        ("sinks", c_void_p),
        ("kind", c_int64),
    )


class CRagged(ctypes.Structure):
    """`Ragged` of paged_attention_cpu.c."""

    _fields_ = (
        *(
            (name, c_void_p)
            for name in ("qo_indptr", "page_indptr", "pages", "kv_lens", "causal", "mask_indptr", "mask")
        ),
        *((name, c_int64) for name in ("num_requests", "max_kv_len")),
    )


def paged_attention_cpu(
    q: torch.Tensor,
    kv_layer: torch.Tensor,
    meta: AttentionMeta,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `dispatch.attention`, on the CPU.  In C the bits of a row do not depend on the rest of the batch."""
    lib = library()
    if lib is None or not is_supported(kv_layer.dtype, kv_layer.shape[-1]):
        return paged_attention_torch(q, kv_layer, meta, scale=scale, window=window, softcap=softcap, sinks=sinks)
    rows = q.float()
    if rows.stride(2) != 1 or rows.stride(1) != rows.shape[2]:
        rows = rows.contiguous()
    out = torch.empty(q.shape, dtype=torch.float32)
    _, num_heads, head_dim = q.shape
    _, _, num_kv_heads, page_size, _ = kv_layer.shape
    sinks = None if sinks is None else sinks.float().contiguous()
    at = None if sinks is None else sinks.data_ptr()
    shape = (num_heads, num_kv_heads, head_dim, page_size)
    layer = CLayer(kv_layer.data_ptr(), *shape, window, scale, softcap, at, POOL_KINDS[kv_layer.dtype])
    failed = lib.paged_attention(
        c_void_p(rows.data_ptr()),
        c_int64(rows.stride(0)),
        ctypes.byref(layer),
        ctypes.byref(ragged(meta)),
        c_void_p(out.data_ptr()),
        c_int32(torch.get_num_threads()),
    )
    if failed:
        raise MemoryError(f"no scratch memory for attention over {meta.max_kv_len} slots")
    return out if q.dtype is torch.float32 else out.to(q.dtype)


def is_supported(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the C operator computes this pool; it reads eight floats at a time."""
    return dtype in POOL_KINDS and head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM


def ragged(meta: AttentionMeta) -> CRagged:
    """The C view of `meta`, which must outlive it."""
    return CRagged(
        meta.qo_indptr.data_ptr(),
        meta.page_indptr.data_ptr(),
        meta.pages.data_ptr(),
        meta.kv_lens.data_ptr(),
        meta.causal.data_ptr(),
        None if meta.mask_indptr is None else meta.mask_indptr.data_ptr(),
        None if meta.mask is None else meta.mask.data_ptr(),
        meta.num_requests,
        meta.max_kv_len,
    )
