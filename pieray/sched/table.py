"""The decode table: sequences that run one token a step and draw the next one, a row of columns for each.

A row is a run of a plan past its prefill, from step to step, or a pass of one token with one sample, for one step.  A
step over rows is a fixed number of operations on arrays: Python touches one when it begins, when it ends, and where it
has something of its own (a grammar, a stop text).  Columns are dense: the last row takes the place of one that leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pieray.kernels.sample_cpu import CHOICE
from pieray.messages import Sampler
from pieray.sched.lanes import I64

if TYPE_CHECKING:
    from pieray.models.lora import LoraAdapter
    from pieray.sched.plans import PlanCommand

U32 = npt.NDArray[np.uint32]
Records = npt.NDArray[Any]

NO_TOKEN = 0xFFFFFFFF
MAX_STOPS = 16
"""Stop tokens that are columns; a run with more of them has them looked at one by one."""
RUN, SPECIAL, SCORED, HOOKED = 1, 2, 4, 8
"""Flags: a run of a plan (else a pass); a draw from other than the plain logits; log-probabilities are wanted; each
token is looked at in Python."""
ROW = np.dtype([
    ("ticket", "<u8"), ("sample_ticket", "<u8"), ("lane", "<i8"), ("queue", "<u4"),
    ("priority", "<i4"), ("turn", "<i8"), ("arrived", "<f8"), ("flags", "<u4"), ("token", "<u4"), ("position", "<u4"),
    ("kv_len", "<i8"),  # tokens with KV: `token` is the one behind them
    ("room", "<i8"),  # slots of its pages
    ("left", "<i8"),  # tokens to draw
    ("num_steps", "<u4"), ("adapter", "<i8"), ("choice", CHOICE),
])  # fmt: skip


class Own(NamedTuple):
    """What of a row is no number."""

    sampler: Sampler
    adapter: LoraAdapter | None
    plan: PlanCommand | None  # of a run


class DecodeTable:
    """Rows `[0, len)`: `rows` [n] of ROW, `pages` [n, W], `stops` [n, S], `own`.  Pages behind a row's own are 0, stops
    NO_TOKEN."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._size = 0
        self._rows: Records = np.zeros(32, ROW)
        self._pages: U32 = np.zeros((32, 8), np.uint32)
        self._stops: U32 = np.full((32, 0), NO_TOKEN, np.uint32)
        self.own: list[Own] = []

    def __len__(self) -> int:
        return self._size

    @property
    def rows(self) -> Records:
        return self._rows[: self._size]

    @property
    def pages(self) -> U32:
        return self._pages[: self._size]

    @property
    def stops(self) -> U32:
        return self._stops[: self._size]

    # --- in and out ------------------------------------------------------------------------------

    def append(self, records: Records, pages: U32, own: Sequence[Own], stops: U32 | None = None) -> I64:
        """Add rows, with pages [n, w] and stop tokens [n, s]; their numbers."""
        first, last = self._size, self._size + len(records)
        self._widen(last, pages.shape[1], 0 if stops is None else stops.shape[1])
        self._size = last
        self._rows[first:last] = records
        self._pages[first:last] = 0
        self._pages[first:last, : pages.shape[1]] = pages
        self._stops[first:last] = NO_TOKEN
        if stops is not None:
            self._stops[first:last, : stops.shape[1]] = stops
        self.own += own
        return np.arange(first, last)

    def extend(self, row: int, pages: U32) -> None:
        """More pages behind a row's own."""
        num_before = int(self._rows["room"][row]) // self.page_size
        self._widen(self._size, num_before + len(pages), 0)
        self._pages[row, num_before : num_before + len(pages)] = pages
        self._rows["room"][row] += len(pages) * self.page_size

    def remove(self, rows: I64) -> None:
        """Take rows out; runs that move to other places are told."""
        size = self._size - len(rows)
        holes = np.sort(rows[rows < size])
        if len(holes):
            is_kept = np.ones(self._size, bool)
            is_kept[rows] = False
            moved = size + np.flatnonzero(is_kept[size:])
            for column in (self._rows, self._pages, self._stops):
                column[holes] = column[moved]
            for hole, place in zip(holes.tolist(), moved.tolist(), strict=True):
                self.own[hole] = own = self.own[place]
                if own.plan is not None:
                    own.plan.row = hole
        del self.own[size:]
        self._size = size

    def _widen(self, size: int, num_pages: int, num_stops: int) -> None:
        capacity, width = self._pages.shape
        if size > capacity or num_pages > width:
            pages = np.zeros((max(size, 2 * capacity if size > capacity else capacity), max(width, num_pages * 3 // 2)),
                             np.uint32)  # fmt: skip
            pages[: self._size, :width] = self._pages[: self._size]
            self._pages = pages
        capacity, num_before = self._stops.shape
        if size > capacity or num_stops > num_before:
            stops = np.full((len(self._pages), max(num_before, num_stops)), NO_TOKEN, np.uint32)
            stops[: self._size, :num_before] = self._stops[: self._size]
            self._stops = stops
        if size > len(self._rows):
            rows: Records = np.zeros(len(self._pages), ROW)
            rows[: self._size] = self._rows[: self._size]
            self._rows = rows

    # --- a step ----------------------------------------------------------------------------------

    def ready(self) -> I64:
        """Rows that have a slot for their next token."""
        rows = self.rows
        return np.flatnonzero(rows["kv_len"] < rows["room"])

    def are_all(self, rows: I64) -> bool:
        """Whether these are all rows, in order."""
        return len(rows) == self._size and bool((rows == np.arange(self._size)).all())

    def of_lanes(self, lanes: I64) -> I64:
        """Rows of these inferlets."""
        return np.flatnonzero(np.isin(self.rows["lane"], lanes))

    def advance(self, rows: I64, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """The rows have drawn these tokens; which of them end by their columns: at a stop token, or with the last that
        they were to draw."""
        table = self._rows
        where: slice | I64 = slice(0, self._size) if self.are_all(rows) else rows  # without a copy
        table["token"][where] = tokens
        table["kv_len"][where] += 1
        table["position"][where] += np.uint32(1)
        table["choice"]["counter"][where] += np.uint64(1)
        table["num_steps"][where] += np.uint32(1)
        table["left"][where] -= 1
        ends: npt.NDArray[np.bool_] = table["left"][where] == 0
        if self._stops.shape[1]:
            ends |= (self._stops[where] == tokens[:, None]).any(1)
        return ends


def stop_column(stops: frozenset[int]) -> U32:
    """A row's stop tokens [1, s]; none of too many."""
    return np.array([sorted(stops) if len(stops) <= MAX_STOPS else []], np.uint32)
