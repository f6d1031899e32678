"""A set of token positions, as ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Range = tuple[int, int]


class Ranges:
    """Disjoint half-open ranges, in order."""

    __slots__ = ("_ranges",)

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._ranges: list[Range] = []
        for start, end in ranges:
            self.add(start, end)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def add(self, start: int, end: int) -> None:
        """Take [start, end) in."""
        touching = [r for r in self._ranges if r[0] <= end and start <= r[1]]
        self._put(touching, min([start, *(r[0] for r in touching)]), max([end, *(r[1] for r in touching)]))

    def remove(self, start: int, end: int) -> None:
        """Take [start, end) out."""
        touching = [r for r in self._ranges if r[0] < end and start < r[1]]
        self._ranges = [r for r in self._ranges if r not in touching]
        self._ranges += [r for a, b in touching for r in ((a, min(b, start)), (max(a, end), b)) if r[0] < r[1]]
        self._ranges.sort()

    def within(self, start: int, end: int) -> list[Range]:
        """The parts that lie in [start, end)."""
        return [(max(a, start), min(b, end)) for a, b in self._ranges if a < end and start < b]

    def _put(self, old: list[Range], start: int, end: int) -> None:
        self._ranges = [r for r in self._ranges if r not in old]
        if start < end:
            self._ranges.append((start, end))
        self._ranges.sort()
