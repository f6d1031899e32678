"""Which of several device groups a program computes on: plain policies over what is known of each.

`GROUP_POLICIES` has them by name, as `Config.group_policy` does.  Each is given a table with one group at least, the
fingerprints of the pages that the program is about to compute (`pieray.messages.leases.fingerprints`), from the
beginning of a text on, and a number that grows by one with each choice; it returns the row of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from pieray.host.device.group_table import GroupTable

SPREAD = 1.1
"""No group is chosen for what it holds that would have so much more to do than the mean of all,"""
SLACK = 2
"""and so many programs more."""
MULTIPLIERS = 0x9E3779B1, 0x85EBCA6B
"""Odd: multiples of them are spread evenly over 32 bits (Knuth, volume 3, 6.4)."""

GroupPolicy: TypeAlias = Callable[[GroupTable, Sequence[int], int], int]


def by_content(table: GroupTable, prints: Sequence[int], turn: int) -> int:
    """Where most of the text is computed already, among those that have not much more to do than others.

    Where nobody has any of it yet, it goes where a text that begins alike has gone last; the first of them to one of
    two groups, whichever has less to do, which others who choose know too: of many launched at one time the first
    computes what the others find.
    """
    if not prints:
        return least_loaded(table, prints, turn)
    loads, rows = table.loads, table.rows
    most = SPREAD * (float(loads.sum()) + 1.0) / len(rows) + SLACK - 1.0
    for found in (table.find(prints, most), table.expected(prints, most)):
        if found is not None:
            return found
    first, further = (
        (prints[0] * odd & 0xFFFFFFFF) * size >> 32
        for odd, size in zip(MULTIPLIERS, (len(rows), len(rows) - 1), strict=True)
    )
    chosen = min(first, (first + 1 + further) % len(rows), key=loads.__getitem__)
    return int(rows[chosen]) if loads[chosen] <= most else least_loaded(table, prints, turn)


def least_loaded(table: GroupTable, prints: Sequence[int], turn: int) -> int:
    """Who has least to do; among equals in turn."""
    del prints
    loads = table.loads
    least = np.flatnonzero(loads == loads.min())
    return int(table.rows[least[turn % len(least)]])


def round_robin(table: GroupTable, prints: Sequence[int], turn: int) -> int:
    """In turn."""
    del prints
    return int(table.rows[turn % len(table.rows)])


GROUP_POLICIES: Mapping[str, GroupPolicy] = {
    "content": by_content,
    "least-loaded": least_loaded,
    "round-robin": round_robin,
}
