"""Plans are staged: all their frames owned at once, the pages to be bound as a plan gets to them."""

from __future__ import annotations

import numpy as np

from pieray.arrays import U32
from pieray.pages.frames import slot_bits, written_runs
from pieray.pages.growing import Growing
from pieray.pages.prepared import Copy
from pieray.pages.staging import Stager


class PlanStager:
    """Commands whose length only the batcher will know."""

    def __init__(self, stager: Stager) -> None:
        self._stager = stager
        self._frames = stager.frames
        self._runs = stager.runs

    def stage(self, handles: U32, kv_len: int, num_tokens: int, num_more: int) -> Growing:
        """Check and pin a run of `num_tokens` behind `kv_len` tokens, and of up to `num_more` drawn ones.

        Copy-on-write is decided for all pages.  No slot counts as written until `num_written` says so.  The run attends
        nothing that `visible` does not show.  Raises as `Stager.forward`.
        """
        size = self._stager.page_size
        slots, first = self._stager.check_forward(handles, kv_len, num_tokens + num_more, is_masked=True)
        line = self._stager.handles.values(slots)
        row_copies: list[Copy] = []
        moved: list[tuple[int, int, int]] = []
        for index in range(first, len(slots)):
            start = max(kv_len - index * size, 0)
            line[index] = self._own_from(int(slots[index]), int(line[index]), start, row_copies, moved)
        num_full, offset = divmod(kv_len, size)
        reads = [(int(line[num_full]), slot_bits(0, offset))] if offset else []
        hidden = self._stager.hidden(slots[: num_full + 1], kv_len) if self._stager.marks.is_used else None
        if hidden is not None and offset:
            reads = [(reads[0][0], reads[0][1] & ~int(hidden[num_full]))]
        busy = np.flatnonzero(self._frames.in_flight.take(line))
        num_pages = max(-(-(kv_len + num_tokens) // size), int(busy[-1]) + 1 if len(busy) else 0)
        one = self._stager.pin(line[:num_pages].copy(), reads, [], row_copies, moved, num_full)
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
        self._runs.add(growing)
        return growing

    def restage(self, old: Growing, num_tokens: int) -> Growing:
        """A run that was stopped, and not by `Runs.stop`, is to go on behind what it was told to have written:
        `num_tokens` of its line are to be run yet.  Its frames stay pinned throughout; the old one is finished."""
        self._runs.settle()
        frames, line, size = self._frames, old.all_rows, self._stager.page_size
        num_own = np.isin(line, old.rows).astype(np.int64) + np.isin(line, old.tail)
        busy = np.flatnonzero(frames.in_flight.take(line) > num_own)
        num_pages = max(-(-(old.num_written + num_tokens) // size), int(busy[-1]) + 1 if len(busy) else 0)
        num_full = old.num_written // size
        rows, tail = line[:num_pages].copy(), line[num_pages:]
        frames.pin(rows)
        frames.pin(tail)
        frames.unreached[tail] += 1
        self._stager.finish(old)
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
            hidden=np.full(num_full, self._stager.full),  # what is before it was there when it began
            tail=tail,
            all_rows=line,
            idents=old.idents,
            num_written=old.num_written,
            settled=old.num_written,
            on_settled=old.on_settled,
        )
        self._runs.add(growing)
        return growing

    def _own_from(
        self, slot: int, row: int, start: int, row_copies: list[Copy], moved: list[tuple[int, int, int]]
    ) -> int:
        """As `Stager.own`, of the slots from `start` on, none of which counts as written yet."""
        frames, kept = self._frames, slot_bits(0, start)
        written = int(frames.written[row]) & kept
        if self._stager.marks.is_used:
            at = np.array([slot])
            written &= ~int(self._stager.marks.cut(at)[0])
            self._stager.marks.written(at, np.array([~kept & int(self._stager.full)], np.uint64))
        if not self._stager.is_own(row):
            return self._stager.copied(slot, row, written, written_runs(written, start, start), row_copies, moved)
        frames.written[row] &= np.uint64(kept)
        return row
