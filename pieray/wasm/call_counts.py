"""How often guests have called each interface of the WIT."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count


class CallCounts:
    """A counter for each function, that its callback moves on by `next`: no lock, and no Python of our own."""

    def __init__(self) -> None:
        self._counters: dict[str, list[Iterator[int]]] = {}

    def counter(self, interface: str) -> Iterator[int]:
        """For one function of the interface."""
        made = count()
        self._counters.setdefault(interface, []).append(made)
        return made

    def by_interface(self) -> dict[str, int]:
        """Calls so far; from any thread."""
        return {name: sum(map(_reached, counters)) for name, counters in self._counters.items()}


def _reached(counter: Iterator[int]) -> int:
    """What `next` would give: `count` tells it in its repr alone without moving on."""
    return int(repr(counter)[len("count(") : -1])
