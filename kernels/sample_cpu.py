"""Sampling on the CPU in one C call; its reference is `pieray.models.sampler.sample_torch`."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import numpy as np
import numpy.typing as npt
import torch

from pieray.arrays import I64
from pieray.kernels.cc import library

#: `Choice` of sample_cpu.c
CHOICE = np.dtype(
    [
        ("temperature", np.float64),
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("typical_p", np.float64),
        ("top_k", np.int64),
        ("seed", np.uint64),
        ("counter", np.uint64),
    ]
)


def is_supported(logits: torch.Tensor) -> bool:
    """Whether `sample_rows` takes these logits: float32 on the CPU, and a compiled library."""
    on_cpu = logits.device.type == "cpu" and logits.dtype is torch.float32
    return on_cpu and logits.stride(-1) == 1 and library() is not None


def sample_rows(logits: torch.Tensor, choices: npt.NDArray[np.void], rows: I64 | None = None) -> torch.Tensor:
    """One token per record: int64 [C] from CHOICE records [C], and `rows` [C] or all of float32 logits [R, vocab]."""
    lib = library()
    assert lib is not None, "callers check `is_supported` first"
    choices = np.ascontiguousarray(choices)
    tokens = torch.empty(len(choices), dtype=torch.int64)
    vocab = logits.shape[-1]
    failed = lib.sample_rows(
        c_void_p(logits.data_ptr()),
        c_int64(logits.stride(0)),
        c_int64(vocab),
        c_void_p(choices.ctypes.data),
        c_void_p(None if rows is None else rows.ctypes.data),
        c_int64(len(choices)),
        c_void_p(tokens.data_ptr()),
    )
    if failed:
        raise MemoryError(f"no scratch memory for sampling from {vocab} tokens")
    return tokens
