"""Opaque handles: a slot index and a generation in one u32, so that a closed handle is never taken for a live one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pieray.arrays import I64, U32, Intp
from pieray.errors import BadHandle, QuotaExceeded

INDEX_BITS = 20
MAX_SLOTS = 1 << INDEX_BITS
_INDEX_MASK = np.uint32(MAX_SLOTS - 1)
NUM_GENERATIONS = 1 << (32 - INDEX_BITS)
MAX_TABLES = 16
"""Tables whose handles can be told apart, see `generations_of`."""


def generations_of(number: int) -> range:
    """Of table `number` of MAX_TABLES: no two have a handle in common."""
    size = NUM_GENERATIONS // MAX_TABLES
    return range(max(1, number * size), (number + 1) * size)


def table_of(handles: U32) -> int | None:
    """Number of the table whose handles they look like; None: of several.  At least one handle is given."""
    numbers = handles >> np.uint32(32 - MAX_TABLES.bit_length() + 1)
    return int(numbers[0]) if (numbers == numbers[0]).all() else None


class HandleTable:
    """Handles `generation << 20 | slot`, each with a value; generations are not 0, so that 0 is never a handle.

    A slot whose generations are used up is retired: no handle is given twice in the life of the table.
    """

    def __init__(self, noun: str, generations: range = range(1, NUM_GENERATIONS)) -> None:
        self._noun = noun  # what a handle stands for, in errors
        self._before_first, self._last = generations.start - 1, generations.stop - 1
        self._handle = _vacant(0, 16)  # the live handle of a slot
        self._value = np.zeros(16, np.int64)
        self._generation = [self._before_first] * 16
        self._free = list(range(15, -1, -1))
        self.num_live = 0

    def open(self, values: I64) -> U32:
        """New handles, one per value; QuotaExceeded (nothing changed) when all 2**32 numbers are used up."""
        while len(self._free) < len(values):
            self._grow()
        slots = self._free[: -len(values) - 1 : -1]
        del self._free[len(self._free) - len(slots) :]
        for slot in slots:
            self._generation[slot] += 1
        index = np.array(slots, np.uint32)
        handles = np.array([self._generation[slot] for slot in slots], np.uint32) << np.uint32(INDEX_BITS) | index
        self._handle[index] = handles
        self._value[index] = values
        self.num_live += len(slots)
        return handles

    def find(self, handles: U32) -> Intp:
        """The slots of live handles; BadHandle naming the first that is not live."""
        slots = (handles & _INDEX_MASK).astype(np.intp)
        live = self._handle.take(slots, mode="clip")
        if live.tobytes() != handles.tobytes():  # bytes: an order faster than (live == handles).all()
            bad = int(handles[np.argmin(live == handles)])
            raise BadHandle(f"{self._noun} handle {bad} was never given to this inferlet, or is closed")
        return slots

    def values(self, slots: Intp) -> I64:
        """The values of live slots (from `find`)."""
        return self._value.take(slots)

    def set_value(self, slot: int, value: int) -> None:
        self._value[slot] = value

    def is_at(self, slot: int, value: int) -> bool:
        """Whether the slot has a live handle with that value."""
        return bool(self._handle[slot] >= MAX_SLOTS and self._value[slot] == value)

    def close(self, slots: Intp) -> None:
        """Close live, distinct slots."""
        self._handle[slots] = slots ^ 1
        self.num_live -= len(slots)
        self._free.extend(self._reusable(slots.tolist()))

    def live_values(self) -> I64:
        """Values of all live handles, by slot; O(slots)."""
        values: I64 = self._value[self._handle >= MAX_SLOTS]
        return values

    def _reusable(self, slots: Sequence[int]) -> list[int]:
        return [slot for slot in reversed(slots) if self._generation[slot] < self._last]

    def _grow(self) -> None:
        size = len(self._handle)
        if size >= MAX_SLOTS:
            raise QuotaExceeded(
                f"all {MAX_SLOTS * (self._last - self._before_first)} {self._noun} handle numbers are used up"
            )
        self._handle = np.concatenate((self._handle, _vacant(size, 2 * size)))
        self._value = np.concatenate((self._value, np.zeros_like(self._value)))
        self._generation += [self._before_first] * size
        self._free[:0] = range(2 * size - 1, size - 1, -1)


def _vacant(start: int, end: int) -> U32:
    """What stands for slots `[start, end)` without a handle: a number whose own index is another one."""
    return np.arange(start, end, dtype=np.uint32) ^ np.uint32(1)
