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
from pieray.pages.frames import UNBOUND, slot_bits, written_runs
from pieray.pages.prepared import Copy, Prepared
from pieray.pages.staging import Staging

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


class GrowingStaging(Staging):
    """Commands whose length only the batcher will know."""

    def stage_plan(self, handles: U32, kv_len: int, num_tokens: int, num_more: int) -> Growing:
        """Check and pin a run of `num_tokens` behind `kv_len` tokens, and of up to `num_more` drawn ones.

        Copy-on-write is decided for all pages.  No slot counts as written until `num_written` says so.  The run attends
        nothing that `visible` does not show.  Raises as `stage_forward`.
        """
        size = self.page_size
        slots, first = self._check_forward(handles, kv_len, num_tokens + num_more, is_masked=True)
        line = self._handles.values(slots)
        row_copies: list[Copy] = []
        moved: list[tuple[int, int, int]] = []
        for index in range(first, len(slots)):
            start = max(kv_len - index * size, 0)
            line[index] = self._own_from(int(slots[index]), int(line[index]), start, row_copies, moved)
        num_full, offset = divmod(kv_len, size)
        reads = [(int(line[num_full]), slot_bits(0, offset))] if offset else []
        hidden = self._hidden(slots[: num_full + 1], kv_len) if self._marks.is_used else None
        if hidden is not None and offset:
            reads = [(reads[0][0], reads[0][1] & ~int(hidden[num_full]))]
        busy = np.flatnonzero(self._frames.in_flight.take(line))
        num_pages = max(-(-(kv_len + num_tokens) // size), int(busy[-1]) + 1 if len(busy) else 0)
        one = self._pin(line[:num_pages].copy(), reads, [], row_copies, moved, num_full)
        tail = line[num_pages:]
        self._frames.pin(tail)
        self._frames.unreached[tail] += 1
        growing = Growing(
            one.rows,
            one.num_pages,
            one.reads,
            one.num_full,
            [],
            one.row_copies,
            one.frames,
            one.frame_copies,
            one.moved,
            hidden=None if hidden is None else hidden[:num_full],
            tail=tail,
            all_rows=line,
            idents=self._frames.ident.take(line),
            num_written=kv_len,
            settled=kv_len,
        )
        self._growing.append(growing)
        return growing

    def restage(self, old: Growing, num_tokens: int) -> Growing:
        """A run that was stopped, and not by `stop_growing`, is to go on behind what it was told to have written:
        `num_tokens` of its line are to be run yet.  Its frames stay pinned throughout; the old one is finished."""
        self.settle()
        frames, line, size = self._frames, old.all_rows, self.page_size
        num_own = np.isin(line, old.rows).astype(np.int64) + np.isin(line, old.tail)
        busy = np.flatnonzero(frames.in_flight.take(line) > num_own)
        num_pages = max(-(-(old.num_written + num_tokens) // size), int(busy[-1]) + 1 if len(busy) else 0)
        num_full = old.num_written // size
        rows, tail = line[:num_pages].copy(), line[num_pages:]
        frames.pin(rows)
        frames.pin(tail)
        frames.unreached[tail] += 1
        self.finish(old)
        growing = Growing(
            rows,
            num_pages,
            [],
            num_full,
            [],
            [],
            frames.ident.take(rows),
            [],
            [],
            hidden=np.full(num_full, self._full),  # what is before it was there when it began
            tail=tail,
            all_rows=line,
            idents=old.idents,
            num_written=old.num_written,
            settled=old.num_written,
            on_settled=old.on_settled,
        )
        self._growing.append(growing)
        return growing

    def _own_from(
        self, slot: int, row: int, start: int, row_copies: list[Copy], moved: list[tuple[int, int, int]]
    ) -> int:
        """As `_own`, of the slots from `start` on, none of which counts as written yet."""
        frames, kept = self._frames, slot_bits(0, start)
        written = int(frames.written[row]) & kept
        if self._marks.is_used:
            at = np.array([slot])
            written &= ~int(self._marks.cut(at)[0])
            self._marks.written(at, np.array([~kept & int(self._full)], np.uint64))
        if not self._is_own(row):
            return self._copied(slot, row, written, written_runs(written, start, start), row_copies, moved)
        frames.written[row] &= np.uint64(kept)
        return row

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

    def stop_growing(self, growing: Growing) -> None:
        """The run gets no more pages: those that it has not got are not in use any more.  Idempotent."""
        rest, growing.tail = growing.tail[growing.num_bound :], growing.tail[: growing.num_bound]
        self._frames.unreached[rest] -= 1
        self._frames.unpin(rest)

    def settle(self) -> None:
        """Mark what runs have written so far."""
        for growing in self._growing:
            if growing.num_written > growing.settled:
                self._confirm(growing, growing.settled, growing.num_written)

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

    def finish(self, prepared: Prepared, *, is_ok: bool = True) -> None:
        if isinstance(prepared, Growing):
            self.settle()
            self._growing.remove(prepared)
        super().finish(prepared, is_ok=is_ok)
        if isinstance(prepared, Growing):
            self.stop_growing(prepared)
            self._frames.unpin(prepared.tail)
