"""Attention masks of passes: packed bits [rows, slots], least significant first, 1 = may attend."""

from __future__ import annotations

import numpy as np

from pieray.arrays import U32
from pieray.errors import InvalidRequest


def mask_bytes(num_rows: int, width: int) -> int:
    """Bytes of a mask."""
    return -(-num_rows * width // 8)


def hide_runs(mask: bytearray, row: int, width: int, runs: U32) -> None:
    """Clear the hidden slots of one row; `runs` are lengths of hidden, visible, hidden, ... slots in turns.

    What is hidden stays so.  Raises InvalidRequest if the runs are longer than the row, `width` slots.
    """
    total = int(runs.sum(dtype=np.uint64))
    if total > width or len(runs) > 2 * width + 2:
        raise InvalidRequest(f"runs of a row of {width} slots add up to at most that; given {total} in {len(runs)}")
    visible = np.ones(width, np.uint8)
    visible[:total] = np.repeat(np.arange(len(runs)) % 2, runs)
    start = row * width
    first, last = start // 8, -(-(start + width) // 8)
    keep = np.ones((last - first) * 8, np.uint8)
    keep[start - 8 * first : start - 8 * first + width] = visible
    packed = np.packbits(keep, bitorder="little")
    mask[first:last] = (np.frombuffer(mask, np.uint8)[first:last] & packed).tobytes()
