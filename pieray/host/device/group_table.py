"""What an InferletActor knows of device groups by what they tell: what each holds, and how much it has to do."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pieray.arrays import F64, I64

MOST_EXPECTED = 4096
"""Texts that are about to be computed, of which it is remembered where."""
MANY = 32
"""Of more groups that hold the beginning of a text only so many are looked at, those that have least to do."""


class GroupTable:
    """A row for each group, numbered from 0; the number of one that is closed is given out again.

    It is made of hints: a group may have dropped what it is said to hold.  Not thread-safe.
    """

    def __init__(self) -> None:
        self.rows: I64 = np.zeros(0, np.int64)
        """Of the groups that may be chosen, in order."""
        self._loads: F64 = np.zeros(4)
        self._prints: list[set[int]] = []  # by row, of pages that are there
        self._holders: dict[int, set[int]] = {}  # by fingerprint: rows
        self._expected: dict[int, int] = {}  # by the first fingerprint of a text: a row, the oldest first

    def open(self) -> int:
        """A row for one more group, of which nothing is known."""
        free = np.setdiff1d(np.arange(len(self._prints)), self.rows)
        row = int(free[0]) if len(free) else len(self._prints)
        if row == len(self._prints):
            self._prints.append(set())
        if row == len(self._loads):
            self._loads = np.concatenate([self._loads, np.zeros(row)])
        self._loads[row] = 0.0
        self.rows = np.sort(np.append(self.rows, row))
        return row

    def close(self, row: int) -> None:
        """It is gone."""
        self.rows = self.rows[self.rows != row]
        self.forget(row, list(self._prints[row]))

    @property
    def loads(self) -> F64:
        """Programs that compute on each of `rows`, in their order."""
        found: F64 = self._loads[self.rows]
        return found

    def load(self, row: int) -> float:
        """Programs that compute there."""
        return float(self._loads[row])

    def set_load(self, row: int, num_programs: float) -> None:
        """So many compute there."""
        self._loads[row] = num_programs

    def add_load(self, row: int, num_programs: float = 1.0) -> None:
        """So many more."""
        self._loads[row] += num_programs

    def choose(self, row: int, prints: Sequence[int]) -> None:
        """A program is about to compute that text there: the next with the same beginning may find it."""
        self.add_load(row)
        if prints:
            self._expected.pop(prints[0], None)
            self._expected[prints[0]] = row
            if len(self._expected) > MOST_EXPECTED:
                del self._expected[next(iter(self._expected))]

    def expected(self, prints: Sequence[int], most: float) -> int | None:
        """Where the beginning of a text was last about to be computed, if no more than `most` compute there."""
        row = self._expected.get(prints[0]) if prints else None
        return row if row is not None and row in self.rows and self._loads[row] <= most else None

    def know(self, row: int, prints: Collection[int]) -> None:
        """Pages are there, by their fingerprints."""
        self._prints[row].update(prints)
        for one in prints:
            self._holders.setdefault(one, set()).add(row)

    def forget(self, row: int, prints: Collection[int]) -> None:
        """They are not there any more."""
        self._prints[row].difference_update(prints)
        for one in prints:
            if (holders := self._holders.get(one)) is not None:
                holders.discard(row)
                if not holders:
                    del self._holders[one]

    def is_known(self, row: int, one: int) -> bool:
        """Whether that page is there."""
        return one in self._prints[row]

    def find(self, prints: Sequence[int], most: float) -> int | None:
        """The row that has most of the beginning of a text, of those with no more than `most` to do; of several the one
        with least; None: no such has any of it."""
        if not prints:
            return None
        rows = np.fromiter(self._holders.get(prints[0], ()), np.int64)
        loads = self._loads[rows]
        rows, loads = rows[loads <= most], loads[loads <= most]
        if len(rows) > MANY:
            rows = rows[np.argpartition(loads, MANY)[:MANY]]
        found = set(rows.tolist())
        for one in prints[1:]:
            if not (deeper := found & self._holders.get(one, set())):
                break
            found = deeper
        return min(found, key=lambda row: (self._loads[row], row), default=None)
