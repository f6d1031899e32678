"""Plans in a PageSpace: frames owned at once, pages bound as the plan gets to them, slots written when told so."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pieray.pages.frames import UNBOUND, slot_bits, written_runs
from pieray.pages.prepared import Copy, Prepared
from pieray.pages.staging import Staging

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


@dataclass(slots=True)
class Growing(Prepared):
    """A plan's run.  `tail` are the rows behind the first `num_pages`: pinned, the first `num_bound` of them bound.

    `rows` reach to the last page that commands before it still use, so that the batcher lets it wait for them.
    """

    tail: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    num_bound: int = 0
    line: I64 = field(default_factory=lambda: np.zeros(0, np.int64))  # all rows, in the order of the handles
    idents: I64 = field(default_factory=lambda: np.zeros(0, np.int64))  # and their identities

    @property
    def room(self) -> int:
        """Pages bound, those before the run included."""
        return self.num_pages + self.num_bound


class GrowingStaging(Staging):
    """Commands whose length only the batcher will know."""

    def stage_plan(self, handles: U32, kv_len: int, num_tokens: int, num_more: int) -> Growing:
        """Check and pin a run of `num_tokens` behind `kv_len` tokens, and of up to `num_more` drawn ones.

        Copy-on-write is decided for all pages.  No slot counts as written until `confirm` says so.  The run attends
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
        return Growing(
            one.rows, one.num_pages, one.reads, one.num_full, [], one.row_copies, one.frames, one.frame_copies,
            one.moved, hidden=None if hidden is None else hidden[:num_full], tail=tail, line=line,
            idents=self._frames.ident.take(line),
        )  # fmt: skip

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
                frames.page[row] = frames.spare.pop()
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

    def stop_growing(self, growing: Growing) -> None:
        """The run gets no more pages: those that it has not got are not in use any more.  Idempotent."""
        rest, growing.tail = growing.tail[growing.num_bound :], growing.tail[: growing.num_bound]
        self._frames.unreached[rest] -= 1
        self._frames.unpin(rest)

    def confirm(self, growing: Growing, start: int, stop: int) -> Prepared | None:
        """Slots `[start, stop)` of the run's line are written; the command that would have done just that.

        None if another command was staged meanwhile to write some of them too.
        """
        size = self.page_size
        num_full, offset = divmod(start, size)
        writes = []
        is_untouched = True
        for index in range(num_full, -(-stop // size)):
            row = int(growing.line[index])
            bits = slot_bits(max(start - index * size, 0), min(stop - index * size, size))
            is_untouched &= not int(self._frames.written[row]) & bits
            self._frames.written[row] |= np.uint64(bits)
            writes.append((row, bits))
        if not is_untouched:
            return None
        num_pages = num_full + len(writes)
        reads = [(int(growing.line[num_full]), slot_bits(0, offset))] if offset else []
        return Prepared(growing.line[:num_pages], num_pages, reads, num_full, writes, [], growing.idents[:num_pages],
                        [], [])  # fmt: skip

    def finish(self, prepared: Prepared, *, is_ok: bool = True) -> None:
        super().finish(prepared, is_ok=is_ok)
        if isinstance(prepared, Growing):
            self.stop_growing(prepared)
            self._frames.unpin(prepared.tail)
