"""What a pass may attend: the mask that it was given, less the tokens hidden by `kv.mask`."""

from __future__ import annotations

import numpy as np

from pieray.arrays import Bools
from pieray.errors import QuotaExceeded

MAX_MASK_BITS = 1 << 22
"""Of a mask that is composed here, on the thread of all guests: a few milliseconds of it."""


def composed(visible: Bools | None, num_tokens: int, mask: bytes) -> bytes:
    """The packed mask [num_tokens, kv_len + num_tokens] of a pass: `mask`, b"" for causal, and for the first kv_len
    columns `visible` [kv_len]; None: `mask` as it is.  Raises QuotaExceeded for more than MAX_MASK_BITS."""
    if visible is None:
        return mask
    kv_len, width = len(visible), len(visible) + num_tokens
    if num_tokens * width > MAX_MASK_BITS:
        raise QuotaExceeded(
            f"a pass over masked tokens has at most {MAX_MASK_BITS} bits of mask; {num_tokens} tokens on {kv_len} take "
            f"{num_tokens * width}: run fewer tokens in a pass"
        )
    if mask:
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=num_tokens * width, bitorder="little")
        seen = bits.reshape(num_tokens, width).astype(np.bool_)
        seen[:, :kv_len] &= visible
    else:
        seen = np.tri(num_tokens, width, kv_len, dtype=np.bool_)
        seen[:, :kv_len] = visible
    return np.packbits(seen, bitorder="little").tobytes()
