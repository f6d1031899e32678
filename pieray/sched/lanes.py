"""Inferlets and tenants by number, so that what is known of each is a column of an array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

K = TypeVar("K")

LaneKey: TypeAlias = tuple[str, int]  # peer_id, inferlet


class Column:
    """One thing that is known of each: `values` by number."""

    __slots__ = ("fill", "values")

    def __init__(self, kind: type, fill: Any, size: int) -> None:
        self.fill = fill
        self.values: npt.NDArray[Any] = np.full(size, fill, kind)

    def grow(self, size: int) -> None:
        more = np.full(size - len(self.values), self.fill, self.values.dtype)
        self.values = np.concatenate((self.values, more))


class Registry(Generic[K]):
    """Small numbers for keys, each given out again when its key is closed: columns stay short."""

    def __init__(self) -> None:
        self.size = 16  # of the columns
        self._numbers: dict[K, int] = {}
        self._keys: list[K | None] = []
        self._free: list[int] = []
        self._columns: list[Column] = []

    def column(self, kind: type, fill: Any) -> Column:
        """A column that holds `fill` for each new key."""
        self._columns.append(Column(kind, fill, self.size))
        return self._columns[-1]

    def open(self, key: K) -> int:
        """The number of a key, a new one if it has none."""
        number = self._numbers.get(key)
        if number is not None:
            return number
        if self._free:
            number = self._free.pop()
            self._keys[number] = key
        else:
            number = len(self._keys)
            self._keys.append(key)
            if number == self.size:
                self.size *= 2
                for column in self._columns:
                    column.grow(self.size)
        self._numbers[key] = number
        return number

    def find(self, key: K) -> int | None:
        return self._numbers.get(key)

    def key(self, number: int) -> K:
        """Whose number it is."""
        key = self._keys[number]
        assert key is not None
        return key

    def __contains__(self, key: K) -> bool:
        return key in self._numbers

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._numbers))

    def close(self, key: K) -> None:
        """Forget the key; nothing if it has no number."""
        number = self._numbers.pop(key, None)
        if number is None:
            return
        self._keys[number] = None
        self._free.append(number)
        for column in self._columns:
            column.values[number] = column.fill


Lanes: TypeAlias = Registry[LaneKey]
"""Inferlets."""
