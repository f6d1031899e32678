"""What steps leave to programs of a lower priority than others of their tenant.

Whatever is in a step besides those of the highest priority, they wait for.  So most steps have them alone, and as often
as it makes them no slower than by LOWER_PART, one has all: on a device where a row more costs next to nothing, that is
each of them.  Prefills of lower ones are in none, until they have aged.
"""

from __future__ import annotations

import numpy as np

from pieray.arrays import I64, Bools

LOWER_PART = 0.25
"""Beside the others, those of the highest priority are slower by this part at most."""


def are_lower(priorities: I64, tenants: I64) -> Bools:
    """Which of these candidates, [n] each, have a lower priority than another of their tenant, a number from 0 on."""
    highest = np.full(int(tenants.max(initial=-1)) + 1, np.iinfo(np.int64).min)
    np.maximum.at(highest, tenants, priorities)
    found: Bools = priorities < highest[tenants]
    return found


class Precedence:
    """Asked ahead of each step that could have lower ones."""

    def __init__(self) -> None:
        self._saved_s = 0.0  # by which steps with all may be longer
        self._more_s = 0.0  # by which they are, as it was when this was asked last
        self._each_s = 0.0  # what a step without the lower ones saves

    def keeps_out(self, highest_s: float, all_s: float) -> bool:
        """Whether the lower ones come to a later step, of one that takes so long without and with them."""
        self._more_s, self._each_s = all_s - highest_s, LOWER_PART * highest_s
        if self._more_s > self._each_s and self.keeps_out_again():
            return True
        self._saved_s = 0.0
        return False

    def keeps_out_again(self) -> bool:
        """Whether they do so in the next step too, which has the same as the last one."""
        if self._saved_s >= self._more_s:
            return False
        self._saved_s += self._each_s
        return True
