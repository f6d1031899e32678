"""Which of several device groups a program computes on: plain policies over what is known of each.

`GROUP_POLICIES` has them by name, as `Config.group_policy` does.  Each is given the groups that may be chosen, one at
least, the fingerprints of the pages that the program is about to compute (`pieray.messages.leases.fingerprints`), from
the beginning of a text on, and a number that grows by one with each choice; it returns one of the groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

SPREAD = 1.1
"""No group is chosen for what it holds that would have so much more than the mean of all,"""
SLACK = 2
"""and so many programs more."""
MULTIPLIER = 0x9E3779B1
"""Odd, about 2**32 over the golden ratio: multiples of it are spread evenly over 32 bits (Knuth, volume 3, 6.4)."""


class Group(Protocol):
    """What is known of a device group."""

    @property
    def load(self) -> float:
        """Programs that compute there."""

    def num_found(self, prints: Sequence[int]) -> int:
        """How many pages of the beginning of a text are there."""


G = TypeVar("G", bound=Group)


def by_content(groups: Sequence[G], prints: Sequence[int], turn: int) -> G:
    """Where most of the text is computed already, among those that have not much more to do than others.

    Texts that begin alike and that nobody has yet go to one of two groups, whichever of them has less to do: of many
    launched at one time the first computes what the others find.
    """
    if not prints:
        return least_loaded(groups, prints, turn)
    most = SPREAD * (sum(group.load for group in groups) + 1) / len(groups) + SLACK
    fit = [group for group in groups if group.load + 1 <= most] or list(groups)
    best = max(fit, key=lambda group: (group.num_found(prints), -group.load))
    if best.num_found(prints):
        return best
    pair = [groups[(prints[0] * MULTIPLIER * odd & 0xFFFFFFFF) * len(groups) >> 32] for odd in (1, 0x85EBCA6B)]
    chosen = min(pair, key=lambda group: group.load)
    return chosen if chosen.load + 1 <= most else least_loaded(groups, prints, turn)


def least_loaded(groups: Sequence[G], prints: Sequence[int], turn: int) -> G:
    """Who has least to do; among equals in turn."""
    del prints
    first = turn % len(groups)
    return min([*groups[first:], *groups[:first]], key=lambda group: group.load)


def round_robin(groups: Sequence[G], prints: Sequence[int], turn: int) -> G:
    """In turn."""
    del prints
    return groups[turn % len(groups)]


class GroupPolicy(Protocol):
    """One of the functions here."""

    def __call__(self, groups: Sequence[G], prints: Sequence[int], turn: int) -> G: ...


GROUP_POLICIES: Mapping[str, GroupPolicy] = {
    "content": by_content,
    "least-loaded": least_loaded,
    "round-robin": round_robin,
}
