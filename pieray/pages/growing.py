"""Plans in a PageSpace: frames owned at once, pages bound as the plan gets to them, slots written as it goes.

    slots      0       settled      told            end
    line      | page 7 | page 9 | page 4 |  ...  |  ...  |
               written  ^ written in truth, and marked when somebody looks
    bound     <------------- room ------->  tail, unreached

How far a run has come (`Growing.num_written`) is a number that its plan keeps up to date; the bits of the slots written
follow in `settle`, for the whole span at once, before anything reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pieray.arrays import I64, U32
from pieray.pages.frames import UNBOUND, FrameTable, slot_bits
from pieray.pages.prepared import Prepared

OnSettled = Callable[[int, int, bool], None]
"""Told that slots [start, stop) of the line are written, and whether nothing else was staged to write some of them."""


def _ignored(_start: int, _stop: int, _is_untouched: bool) -> None: ...


@dataclass(slots=True, eq=False)
class Growing(Prepared):
    """A plan's run.  `tail` are the rows behind the first `num_pages`: pinned, the first `num_bound` of them bound.

    `rows` reach to the last page that commands before it still use, so that the batcher lets it wait for them.
    """

    tail: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    num_bound: int = 0
    all_rows: I64 = field(default_factory=lambda: np.zeros(0, np.int64))  # all rows, in the order of the handles
    idents: I64 = field(default_factory=lambda: np.zeros(0, np.int64))  # and their identities
    num_written: int = 0  # slots of the line that are written, in truth
    settled: int = 0  # of these, those marked as written
    on_settled: OnSettled = _ignored

    @property
    def room(self) -> int:
        """Pages bound, those before the run included."""
        return self.num_pages + self.num_bound


class Runs:
    """The runs of plans under way: what they have bound, and what they have written."""

    def __init__(self, page_size: int, frames: FrameTable) -> None:
        self.page_size = page_size
        self._full = np.uint64(slot_bits(0, page_size))
        self._frames = frames
        self._growing: list[Growing] = []

    def add(self, growing: Growing) -> None:
        """It begins."""
        self._growing.append(growing)

    def remove(self, growing: Growing) -> None:
        """It has ended."""
        self._growing.remove(growing)

    def settle(self) -> None:
        """Mark what runs have written so far."""
        for growing in self._growing:
            if growing.num_written > growing.settled:
                self._confirm(growing, growing.settled, growing.num_written)

    def grow(self, growing: Growing, num_pages: int) -> U32:
        """Bind up to `num_pages` more pages, as far as spare ones go; the physical pages, in order."""
        frames = self._frames
        found: list[int] = []
        for row in growing.tail[growing.num_bound : growing.num_bound + num_pages].tolist():
            if frames.page[row] == UNBOUND:
                if not frames.spare:
                    break
                frames.bind_one(row)
            found.append(int(frames.page[row]))
            frames.unreached[row] -= 1
        growing.num_bound += len(found)
        return np.array(found, "<u4")

    def num_before(self, growing: Growing, later: Prepared) -> int:
        """Pages for the run to get before a command staged behind it may go: up to the last that both use."""
        if not self._frames.unreached.take(later.rows).any():
            return 0
        both = np.flatnonzero(np.isin(growing.tail[growing.num_bound :], later.rows))
        return int(both[-1]) + 1 if len(both) else 0

    def is_behind(self, other: Prepared, growing: Growing) -> bool:
        """Whether a command under way uses pages that the run is yet to write to, or writes to any of its pages."""
        ahead = growing.all_rows[growing.num_written // self.page_size :]
        written = np.array([row for row, _ in other.writes], np.int64)
        return bool(np.isin(other.rows, ahead).any() or np.isin(written, growing.all_rows).any())

    def stop(self, growing: Growing) -> None:
        """The run gets no more pages: those that it has not got are not in use any more.  Idempotent."""
        rest, growing.tail = growing.tail[growing.num_bound :], growing.tail[: growing.num_bound]
        self._frames.unreached[rest] -= 1
        self._frames.unpin(rest)

    def _confirm(self, growing: Growing, start: int, stop: int) -> None:
        size, written = self.page_size, self._frames.written
        first, last = start // size, -(-stop // size)
        rows = growing.all_rows[first:last]
        bits = np.full(last - first, self._full)
        bits[0] &= ~np.uint64(slot_bits(0, start - first * size))
        bits[-1] &= np.uint64(slot_bits(0, stop - (last - 1) * size))
        is_untouched = not (written.take(rows) & bits).any()
        written[rows] |= bits
        growing.settled = stop
        growing.on_settled(start, stop, is_untouched)
