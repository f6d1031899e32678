"""What a step leaves to programs of a lower priority than others of their tenant.

Whatever is in a step besides them, those of the highest priority wait for.  Decodes of lower ones are in it as far as
they make it no longer than LOWER_PART of what it takes without them, those first that have waited longest; on a device
where a row more costs next to nothing, that is all of them.  Prefills of lower ones are not, until they have aged.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pieray.sched.lanes import I64

F64 = npt.NDArray[np.float64]
B1 = npt.NDArray[np.bool_]

LOWER_PART = 0.5
LATER = math.inf
"""Seconds of what is in no step beside a higher priority."""


def held_back(priorities: I64, tenants: I64, seconds: F64, turns: I64, step_s: float) -> B1:
    """Which of these candidates, [n] each, wait for a later step; one without any takes `step_s`.

    Tenants are numbers from 0 on, turns of the order in which the candidates have waited.
    """
    highest = np.full(int(tenants.max(initial=-1)) + 1, np.iinfo(np.int64).min)
    np.maximum.at(highest, tenants, priorities)
    is_held: B1 = priorities < highest[tenants]
    low = np.flatnonzero(is_held & (seconds < LATER))
    if len(low):
        order = low[np.lexsort((turns[low], -priorities[low]))]
        others = seconds[~is_held]
        most = LOWER_PART * (step_s + float(others[others < LATER].sum()))
        num_taken = int(np.searchsorted(np.cumsum(seconds[order]), most, side="right"))
        is_held[order[: max(num_taken, 1)]] = False
    return is_held
