"""Short names for the lists of numbers that handlers take."""

from __future__ import annotations

import numpy as np


def u32(*values: int) -> np.ndarray:
    return np.array(values, np.uint32)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


NONE = u32()
