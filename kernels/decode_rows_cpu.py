"""A step of rows in one C call; its reference is what `ModelRunner.decode` makes of them with `Decoder` and
`sample_torch`."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pieray.arrays import I64, U8
from pieray.kernels.cc import library
from pieray.kernels.decoder_step_cpu import CModel, CStep

INVALID = 2


class CColumn(ctypes.Structure):
    """`Column` of decode_rows_cpu.c."""

    _fields_ = (("data", c_void_p), ("stride", c_int64))


class CRows(ctypes.Structure):
    """`Rows` of decode_rows_cpu.c."""

    _fields_ = (
        *((name, CColumn) for name in ("tokens", "positions", "kv_lens", "pages", "choices")),
        ("num_rows", c_int64),
        ("width", c_int64),
    )


class CBounds(ctypes.Structure):
    """`Bounds` of decode_rows_cpu.c."""

    _fields_ = tuple((name, c_int64) for name in ("vocab", "max_position", "num_pages"))


def column(array: npt.NDArray[Any]) -> CColumn:
    """The C view of an array's first axis, which must outlive it."""
    return CColumn(array.ctypes.data, array.strides[0])


class RowStep:
    """The call, with what stays the same from step to step."""

    def __init__(self, model: CModel, bounds: CBounds) -> None:
        lib = library()
        assert lib is not None, "callers check `library()` first"
        self._call = lib.decode_rows
        self._model, self._bounds = ctypes.byref(model), ctypes.byref(bounds)
        self._num_bad = c_int64(0)
        self._reserve(0)

    def _reserve(self, num_rows: int) -> None:
        self._tokens, self._is_bad = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.uint8)
        self._tokens_at, self._is_bad_at = self._tokens.ctypes.data, self._is_bad.ctypes.data

    def __call__(
        self, rows: CRows, step: CStep, work: int, logits: int, threads: int, is_special: U8 | None
    ) -> tuple[I64, U8 | None] | None:
        """The rows' tokens [R], 0 where `is_special`, and, if there are any, which rows have logits that are not finite
        [R]; None if a row names what there is not.  `work` and `logits`: addresses as in `decoder_step`.
        """
        if rows.num_rows != len(self._tokens):
            self._reserve(rows.num_rows)
        failed = self._call(
            self._model,
            ctypes.byref(rows),
            self._bounds,
            ctypes.byref(step),
            c_void_p(work),
            c_void_p(logits),
            c_int32(threads),
            c_void_p(None if is_special is None else is_special.ctypes.data),
            c_void_p(self._tokens_at),
            c_void_p(self._is_bad_at),
            ctypes.byref(self._num_bad),
        )
        if failed == INVALID:
            return None
        if failed:
            raise MemoryError(f"no scratch memory for a step of {rows.num_rows} rows")
        return self._tokens.copy(), self._is_bad.copy() if self._num_bad.value else None


def zero_bad_rows(logits: torch.Tensor) -> list[int]:
    """Zero the rows of logits [R, vocab] (see `sample_cpu.is_supported`) that are not finite; which they are."""
    lib = library()
    assert lib is not None, "callers check `is_supported` first"
    num_rows, vocab = logits.shape
    is_bad = np.empty(num_rows, np.uint8)
    lib.zero_bad_rows.restype = c_int64
    count = lib.zero_bad_rows(
        c_void_p(logits.data_ptr()),
        c_int64(logits.stride(0)),
        c_int64(vocab),
        c_int64(num_rows),
        c_void_p(is_bad.ctypes.data),
    )
    found: list[int] = np.flatnonzero(is_bad).tolist() if count else []
    return found
