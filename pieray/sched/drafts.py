"""The n-gram drafter: prompt lookup (Saxena 2023) over one sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONGEST, SHORTEST = 4, 2
"""Tokens of the ending whose latest repetition is looked for, the longest first."""
WORD = 4
"""Bytes of a token."""


class NgramDrafter:
    """Drafts what followed when the last few tokens came before.  A search is one pass over 4 bytes per token, in C."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._line = bytearray(np.asarray(tokens, "<u4").tobytes())

    def extend(self, tokens: Sequence[int]) -> None:
        self._line += np.asarray(tokens, "<u4").tobytes()

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none if the ending is new."""
        for length in range(LONGEST, SHORTEST - 1, -1):
            place = self._find(length * WORD)
            if place >= 0:
                found = self._line[place : place + most * WORD]
                return [int(token) for token in np.frombuffer(bytes(found), "<u4")]
        return []

    def _find(self, size: int) -> int:
        """Where the latest earlier occurrence of the last `size` bytes ends, on the border of a token; -1: nowhere."""
        line = self._line
        if len(line) <= size:
            return -1
        pattern, end = line[-size:], len(line) - 1
        while (place := line.rfind(pattern, 0, end)) >= 0:
            if place % WORD == 0:
                return place + size
            end = place + size - 1
        return -1
