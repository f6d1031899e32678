"""Rows that are in several steps in turn, chosen once.

Where not all rows that are ready may be in each step, because of shares or priorities, choosing takes as long as some
rows do.  So those that were chosen are in the next steps too, KEPT_STEPS at most, in which nobody looks at accounts:
these are charged afterwards, as for the first (`Shares.repeat`).  That ends when other rows are ready, when an inferlet
comes to have commands, and when commands or programs of lower priority may be in the step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pieray.arrays import I64
from pieray.sched.table import RowGroup

KEPT_STEPS = 8


class KeptRows:
    """Empty at first."""

    def __init__(self) -> None:
        self._group: RowGroup | None = None
        self._ready: I64 = np.zeros(0, np.int64)  # from which they were chosen
        self._changes = 0, 0  # as `keep` has them
        self._num_steps = 0  # since they were chosen
        self._is_charged = False
        self._num_uncharged = 0

    def keep(self, group: RowGroup, ready: I64, changes: tuple[int, int], *, is_charged: bool) -> None:
        """A step has these rows alone, of those that were `ready`: they are in the next ones too, unless that was all
        of them.  `changes` counts rows that come or go and inferlets that come to have commands; `is_charged`: accounts
        were."""
        self._group = group if len(group) < len(ready) else None
        self._ready, self._changes, self._num_steps, self._is_charged = ready, changes, 0, is_charged

    def take(self, ready: I64, changes: tuple[int, int], stay_out: Callable[[], bool]) -> RowGroup | None:
        """Those of the next step; None: it is to be looked who is in it.  `stay_out`, asked last, tells whether those
        that were kept out of the step before are kept out of this one."""
        if self._group is None:
            return None
        is_same = ready is self._ready and changes == self._changes and self._num_steps < KEPT_STEPS
        if not is_same or not stay_out():
            self._group = None
            return None
        self._num_steps += 1
        self._num_uncharged += self._is_charged
        return self._group

    def take_uncharged(self) -> int:
        """Steps, since this was called last, that accounts are to be charged for as for the one filled last."""
        found, self._num_uncharged = self._num_uncharged, 0
        return found
