"""The commands of a PageSpace: checked and pinned in program order, bound to memory before they are sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pieray.arrays import I64, U32, U64, Intp
from pieray.errors import BadHandle, Cancelled, InvalidRequest, Unsupported
from pieray.pages.frames import UNBOUND, FrameTable, slot_bits, written_runs
from pieray.pages.growing import Growing, Runs
from pieray.pages.handles import HandleTable
from pieray.pages.marks import Marks
from pieray.pages.prepared import Copy, Prepared


class Stager:
    """What commands do with handles and frames.  What others of the room use has no underscore.

    Whatever looks at the slots that are written has the `runs` settle first.
    """

    def __init__(self, page_size: int, handles: HandleTable, frames: FrameTable, marks: Marks, runs: Runs) -> None:
        self.page_size = page_size
        self.full = np.uint64(slot_bits(0, page_size))
        self.handles = handles
        self.frames = frames
        self.marks = marks
        self.runs = runs
        self._left: list[int] = []  # rows that lost their last handle to a write of the command being staged
        self.has_failed = False

    def forward(self, handles: U32, kv_len: int, num_tokens: int, *, is_masked: bool = False) -> Prepared:
        """Check and pin a forward of `num_tokens` behind the `kv_len` tokens in the pages of `handles`.

        The written slots are `[kv_len, kv_len + num_tokens)` of the list.  Raises BadHandle; InvalidRequest if they
        do not fit in the pages, if a slot below kv_len was never written, or if a page that is written to is named
        twice.  Handles behind the last page used are checked and otherwise ignored.

        `is_masked`: the pass attends nothing that `visible` does not show, so that hidden slots need not have been
        written: they may hold what another tenant left.  Without it hidden slots are Unsupported.
        """
        slots, first = self.check_forward(handles, kv_len, num_tokens, is_masked=is_masked)
        rows = self.handles.values(slots)
        return self._stage(slots, rows, first, kv_len, kv_len + num_tokens)

    def verify(self, handles: U32, kv_len: int, num_tokens: int, *, is_masked: bool = False) -> Prepared:
        """As `forward`, for a command that tells only in the end how much it has written (`keep_written`).

        Until then no slot from kv_len on counts as written, in the pages that it writes to.
        """
        prepared = self.forward(handles, kv_len, num_tokens, is_masked=is_masked)
        for row, bits in prepared.writes:
            self.frames.written[row] &= np.uint64((bits & -bits) - 1)
        return prepared

    def keep_written(self, prepared: Prepared, num_tokens: int) -> bool:
        """The command, not finished yet, has written the first `num_tokens` of its slots and no others.

        False if a later command was staged to write some of them too.
        """
        self.runs.settle()
        frames, left, kept = self.frames, num_tokens, []
        is_untouched = True
        for row, bits in prepared.writes:
            count = min(left, bits.bit_count())
            first = (bits & -bits).bit_length() - 1
            kept.append((row, slot_bits(first, first + count)))
            is_untouched &= not int(frames.written[row]) & kept[-1][1]
            frames.written[row] |= np.uint64(kept[-1][1])
            left -= count
        prepared.writes = kept
        return is_untouched

    def copy(self, src: int, src_offset: int, dst: int, dst_offset: int, count: int) -> Prepared:
        """Check and pin a copy of `count` tokens between two pages; source and destination may be one.

        `frames` and `pages` are [source, destination].  Raises BadHandle, and InvalidRequest if a range leaves its
        page or the source was not written.  The copy itself is the last of `copies`.
        """
        pair = np.array([src, dst], np.int64)
        if pair.min() < 0 or pair.max() >= 1 << 32:
            raise BadHandle(f"page handles are u32; given {src} and {dst}")
        slots = self.handles.find(pair.astype(np.uint32))
        for name, offset in (("source", src_offset), ("destination", dst_offset)):
            if not (offset >= 0 < count and offset + count <= self.page_size):
                raise InvalidRequest(
                    f"{count} tokens at {name} offset {offset} are outside a page of {self.page_size} tokens"
                )
        self.runs.settle()
        rows = self.handles.values(slots)
        wanted = slot_bits(src_offset, src_offset + count)
        if int(self.written(slots[:1])[0]) & wanted != wanted:
            raise InvalidRequest(f"slots [{src_offset}, {src_offset + count}) of page {src} were not all written")
        row_copies: list[Copy] = []
        stop = dst_offset + count
        moved: list[tuple[int, int, int]] = []
        rows[1] = row = self._own(int(slots[1]), int(rows[1]), dst_offset, stop, row_copies, moved)
        row_copies.append((int(rows[0]), src_offset, row, dst_offset, count))
        reads = [(int(rows[0]), wanted)]
        return self.pin(rows, reads, [(row, slot_bits(dst_offset, stop))], row_copies, moved)

    def bind(self, prepared: Prepared) -> bool:
        """Give each frame of the command a page and fill in `pages` and `copies`; False when spare pages are short.

        True with `error` set: the command can never run, for what it reads will not be written; finish it with that.
        """
        frames = self.frames
        if self.has_failed and self._is_void(prepared):
            prepared.error = Cancelled("a command that was to write what this one reads has failed")
            return True
        pages = frames.page.take(prepared.rows)
        is_unbound = pages == UNBOUND
        if np.count_nonzero(is_unbound):
            unbound = prepared.rows[is_unbound]
            unbound = unbound[np.sort(np.unique(unbound, return_index=True)[1])]
            if len(unbound) > len(frames.spare):
                return False
            frames.bind(unbound)
            pages = frames.page.take(prepared.rows)
        prepared.pages = pages[: prepared.num_pages].astype("<u4")
        if prepared.row_copies:
            prepared.copies = _renamed(prepared.row_copies, frames.page)
        return True

    def finish(self, prepared: Prepared, *, is_ok: bool = True) -> None:
        """The command has completed or failed, exactly once: unpin its frames.

        After a failure the slots it was to write count as not written.  If it failed before it was bound, handles
        that copy-on-write has moved go back to their frames where nothing has built on the new ones, and lose what was
        to be copied where something has.  A command that was bound must have sent its `copies`, whatever became of it.
        """
        if isinstance(prepared, Growing):
            self.runs.settle()
            self.runs.remove(prepared)
        frames = self.frames
        if not is_ok:
            self.has_failed = True
            for row, bits in prepared.writes:
                frames.written[row] &= np.uint64(~bits & int(self.full))
            if not len(prepared.pages):
                self._move_back(prepared)
        elif self.has_failed:  # an earlier writer of these slots may have failed meanwhile
            for row, bits in prepared.writes:
                frames.written[row] |= np.uint64(bits)
        frames.unpin(prepared.rows)
        if isinstance(prepared, Growing):
            self.runs.stop(prepared)
            frames.unpin(prepared.tail)

    def shortfall(self, prepared: Iterable[Prepared]) -> int:
        """Pages to be granted before all of `prepared` can be bound."""
        rows = [one.rows for one in prepared]
        return max(0, self._num_unbound(np.concatenate(rows)) - len(self.frames.spare)) if rows else 0

    # --- inside --------------------------------------------------------------------------------

    def check_forward(self, handles: U32, kv_len: int, num_tokens: int, *, is_masked: bool = False) -> tuple[Intp, int]:
        """Intp of the pages that a valid forward uses, and the index of the first it writes to."""
        end, size = kv_len + num_tokens, self.page_size
        if kv_len < 0 or num_tokens < 1 or end > len(handles) * size:
            raise InvalidRequest(
                f"kv_len {kv_len} + {num_tokens} tokens: kv_len is at least 0, tokens at least 1, and both fit in "
                f"{len(handles)} pages of {size} ({len(handles) * size} slots)"
            )
        slots = self.handles.find(handles)[: -(-end // size)]
        self.runs.settle()
        first, offset = divmod(kv_len, size)
        read = slots[: first + 1] if offset else slots[:first]
        written = self.readable(read)
        if not is_masked and self.marks.is_used and self.hidden(read, kv_len) is not None:
            raise Unsupported("tokens of these pages are masked, and this command sees all: show them again (kv.mask)")
        partial = slot_bits(0, offset)
        is_full = written[:first].tobytes() == self.full.tobytes() * first
        if not is_full or (offset and int(written[first]) & partial != partial):
            raise InvalidRequest(f"kv_len {kv_len}: not all slots below it were written; forward or copy to them first")
        self._check_written_once(slots, first)
        return slots, first

    def _check_written_once(self, slots: Intp, first: int) -> None:
        num_written = len(slots) - first
        if num_written == 1:
            is_once = np.count_nonzero(slots == slots[first]) == 1
        else:
            is_once = len(np.unique(slots[first:])) == num_written and not np.isin(slots[:first], slots[first:]).any()
        if not is_once:
            raise InvalidRequest(f"a page to write to is named twice (pages {first} to {len(slots) - 1} of the list)")

    def _stage(self, slots: Intp, rows: I64, first: int, kv_len: int, end: int) -> Prepared:
        size = self.page_size
        num_full, offset = divmod(kv_len, size)
        row_copies: list[Copy] = []
        moved: list[tuple[int, int, int]] = []
        writes = []
        for index in range(first, len(slots)):
            base = index * size
            start, stop = max(kv_len - base, 0), min(end - base, size)
            rows[index] = row = self._own(int(slots[index]), int(rows[index]), start, stop, row_copies, moved)
            writes.append((row, slot_bits(start, stop)))
        reads = [(int(rows[num_full]), slot_bits(0, offset))] if offset else []
        hidden = self.hidden(slots[: num_full + 1], kv_len) if self.marks.is_used else None
        if hidden is not None and offset:
            reads = [(reads[0][0], reads[0][1] & ~int(hidden[num_full]))]
        prepared = self.pin(rows, reads, writes, row_copies, moved, num_full)
        if hidden is not None:
            prepared.hidden = hidden[:num_full]
        return prepared

    def written(self, slots: Intp) -> U64:
        """The page slots that are written, as the handles see it."""
        written = self.frames.written.take(self.handles.values(slots))
        return written & ~self.marks.cut(slots) if self.marks.is_used else written

    def readable(self, slots: Intp) -> U64:
        """The page slots that a pass may find before it: written, or hidden from it."""
        written = self.written(slots)
        return written | self.marks.hidden(slots) & self.full if self.marks.is_used else written

    def hidden(self, slots: Intp, kv_len: int) -> U64 | None:
        """The hidden page slots of the pages with the first `kv_len` tokens; None if none of these is hidden."""
        hidden = self.marks.hidden(slots)
        if len(slots) * self.page_size > kv_len:
            hidden[-1] &= np.uint64(slot_bits(0, kv_len % self.page_size))
        return hidden if hidden.any() else None

    def _own(
        self, slot: int, row: int, start: int, stop: int, row_copies: list[Copy], moved: list[tuple[int, int, int]]
    ) -> int:
        """The row to write slots [start, stop) of a handle's frame to: its own, or a new one with copies planned."""
        frames = self.frames
        written = int(frames.written[row])
        if self.marks.is_used:
            at = np.array([slot])
            written &= ~int(self.marks.cut(at)[0])
            self.marks.written(at, np.array([slot_bits(start, stop)], np.uint64))
        if not self.is_own(row):
            row = self.copied(slot, row, written, written_runs(written, start, stop), row_copies, moved)
        frames.written[row] |= np.uint64(slot_bits(start, stop))
        return row

    def is_own(self, row: int) -> bool:
        """Whether one handle alone has the frame, and no export: it is written to in place."""
        return bool(self.frames.refs[row] == 1 and not self.frames.is_shared[row])

    def copied(
        self,
        slot: int,
        row: int,
        written: int,
        runs: Sequence[tuple[int, int]],
        row_copies: list[Copy],
        moved: list[tuple[int, int, int]],
    ) -> int:
        """A new row for a handle, with the `runs` of the old one to be copied, and `written` as far as it is."""
        frames = self.frames
        new = int(frames.new(1)[0])
        row_copies += [(row, offset, new, offset, count) for offset, count in runs]
        frames.refs[row] -= 1
        if not frames.refs[row]:
            self._left.append(row)
        self.handles.set_value(slot, new)
        if runs:
            moved.append((slot, row, new))
        frames.written[new] = written
        return new

    def pin(
        self,
        rows: I64,
        reads: list[tuple[int, int]],
        writes: list[tuple[int, int]],
        row_copies: list[Copy],
        moved: list[tuple[int, int, int]],
        num_full: int = 0,
    ) -> Prepared:
        num_pages, ident = len(rows), self.frames.ident
        frame_copies: list[Copy] = []
        if row_copies:
            frame_copies = _renamed(row_copies, ident)
            rows = np.concatenate((rows, np.array([old for _, old, _ in moved], np.int64)))
        self.frames.pin(rows)
        if self._left:
            self.frames.left(np.array(self._left, np.int64))
            self._left.clear()
        frames = ident.take(rows[:num_pages])
        return Prepared(rows, num_pages, reads, num_full, writes, row_copies, frames, frame_copies, moved)

    def _is_void(self, prepared: Prepared) -> bool:
        """Whether a slot that the command reads counts as not written any more."""
        written = self.frames.written
        found = written.take(prepared.rows[: prepared.num_full])
        if not ((found if prepared.hidden is None else found | prepared.hidden) == self.full).all():
            return True
        return any(int(written[row]) & bits != bits for row, bits in prepared.reads)

    def _move_back(self, prepared: Prepared) -> None:
        frames = self.frames
        for slot, old, new in reversed(prepared.moved):
            if frames.refs[new] == 1 and frames.in_flight[new] == 1 and self.handles.is_at(slot, new):
                self.handles.set_value(slot, old)
                frames.move_ref(new, old)
            else:
                frames.written[new] = 0

    def _num_unbound(self, rows: I64) -> int:
        unbound = rows[self.frames.page.take(rows) == UNBOUND]
        return len(np.unique(unbound)) if len(unbound) > 1 else len(unbound)


def _renamed(copies: list[Copy], names: I64) -> list[Copy]:
    return [(int(names[src]), src_off, int(names[dst]), dst_off, n) for src, src_off, dst, dst_off, n in copies]
