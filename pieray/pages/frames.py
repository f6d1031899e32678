"""Frames: the memory behind page handles, bound to physical pages ahead of use and not before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pieray.arrays import I64, U64
from pieray.errors import PierayError

UNBOUND = -1
MAX_PAGE_SIZE = 64  # tokens: the written slots of a frame are the bits of a u64


class FrameTable:
    """Frames by row.  A row is recycled, and its page goes back to `spare`, when no handle and no command uses it.

    `spare` is a stack: the page that came last goes first.  A *shared* frame's page is an export's too, or known by its
    content: it is never written to again, and goes to `returned` in place of `spare`.

    What a frame without a page holds may be in a *host slot* of the batcher: it is brought back (`restoring`) to the
    page that the frame is bound to next, and given up (`dropped`) with the frame.  What a frame that is *lost* held is
    nowhere: it is to be computed again, see `pieray.host.device.rebuild`.
    """

    def __init__(self) -> None:
        self.page: I64 = np.full(16, UNBOUND, np.int64)  # physical page
        self.slot: I64 = np.full(16, UNBOUND, np.int64)  # host slot, of a frame without a page
        self.is_lost = np.zeros(16, np.bool_)  # frames without page and host slot, that had content
        self.refs: I64 = np.zeros(16, np.int64)  # handles
        self.in_flight: I64 = np.zeros(16, np.int64)  # commands staged and not finished
        self.used_at: I64 = np.zeros(16, np.int64)  # when a command that used it has finished last; uses count up
        self.unreached: I64 = np.zeros(16, np.int64)  # of those, plans that may still get here
        self.written = np.zeros(16, np.uint64)  # bit i: slot i holds KV that this inferlet wrote
        self.ident: I64 = np.zeros(16, np.int64)  # unique for the life of the table, from 1; 0: row is free
        self.is_shared = np.zeros(16, np.bool_)
        self.is_indexed = np.zeros(16, np.bool_)  # of those, the ones that the ResourceManager knows by their content
        self.spare: list[int] = []
        self.returned: list[int] = []  # pages to be released: others may still have them
        self.num_reserved = 0  # spare pages that the guest has asked to keep for itself
        self.restoring: list[tuple[int, int]] = []  # host slots whose content is to come, and the pages for it
        self.num_swapped = 0  # rows with a host slot
        self.dropped: list[int] = []  # host slots that nobody wants any more
        self._free = list(range(15, -1, -1))
        self._next_ident = 1
        self._num_uses = 0
        self._num_unreferenced = 0  # frames without a handle, kept by commands in flight

    def new(self, count: int, refs: int = 1) -> I64:
        """Rows of new, unbound, unwritten frames."""
        while len(self._free) < count:
            self._grow()
        rows = np.array(self._free[: -count - 1 : -1], np.int64)
        del self._free[len(self._free) - count :]
        self.refs[rows] = refs
        self.ident[rows] = np.arange(self._next_ident, self._next_ident + count)
        self._next_ident += count
        return rows

    def bind(self, rows: I64) -> None:
        """Give each of the unbound, distinct rows the next spare page; the caller has seen to it that they suffice."""
        for row in rows.tolist():
            self.bind_one(row)
        self.num_reserved = max(0, self.num_reserved - len(rows))

    def bind_one(self, row: int) -> None:
        """Give an unbound row the next spare page."""
        self.page[row] = page = self.spare.pop()
        self.is_lost[row] = False
        if self.slot[row] != UNBOUND:
            self.restoring.append((int(self.slot[row]), page))
            self.slot[row] = UNBOUND
            self.num_swapped -= 1

    def swap_out(self, rows: I64, slots: I64) -> list[int]:
        """What the bound rows hold is in those host slots, UNBOUND for nothing of note; their pages, to be released."""
        pages: list[int] = self.page.take(rows).tolist()
        self.page[rows] = UNBOUND
        self.slot[rows] = slots
        self.num_swapped += int(np.count_nonzero(slots != UNBOUND))
        # one that is known by its content is still not written to: others may come to have the page that it gets
        self.is_shared[rows] = self.is_indexed[rows]
        self.is_indexed[rows] = False
        return pages

    def new_unreferenced(self, count: int) -> I64:
        """Rows without a handle, for a command that is about to pin them: they are recycled when it has finished."""
        self._num_unreferenced += count
        return self.new(count, refs=0)

    def adopt(self, rows: I64, pages: list[int], written: U64) -> None:
        """The new frames are pages of an export, with those slots written."""
        self.page[rows], self.written[rows], self.is_shared[rows] = pages, written, True

    def adopt_found(self, rows: I64, pages: Sequence[int]) -> None:
        """The unbound, distinct rows get pages that hold what was to be written to them."""
        self.page[rows] = pages
        self.is_shared[rows] = self.is_indexed[rows] = True

    def return_found(self, rows: I64, pages: Sequence[int]) -> None:
        """The distinct rows that are away get pages that hold what they did."""
        self.num_swapped -= int(np.count_nonzero(self.slot.take(rows) != UNBOUND))
        self.dropped += self.slot[rows][self.slot[rows] != UNBOUND].tolist()
        self.slot[rows] = UNBOUND
        self.is_lost[rows] = False
        self.adopt_found(rows, pages)

    def add_refs(self, rows: I64) -> None:
        np.add.at(self.refs, rows, 1)

    def drop_refs(self, rows: I64) -> None:
        """One handle less for each entry of `rows`, which may repeat."""
        np.subtract.at(self.refs, rows, 1)
        self.left(rows)

    def left(self, rows: I64) -> None:
        """Handles have left the rows, which may repeat, and are counted off already."""
        for row in dict.fromkeys(rows[self.refs[rows] == 0].tolist()):
            if self.in_flight[row]:
                self._num_unreferenced += 1
            else:
                self._recycle(row)

    def move_ref(self, src: int, dst: int) -> None:
        """The only handle of `src` moves to `dst`; both are pinned."""
        self.refs[src] -= 1
        self._num_unreferenced += 1 if self.refs[dst] else 0
        self.refs[dst] += 1

    def pin(self, rows: I64) -> None:
        """A command uses the rows; a row named several times counts once, here and in `unpin` alike."""
        self.in_flight[rows] += 1

    def unpin(self, rows: I64) -> None:
        """The command has finished; `rows` as it was given to `pin`."""
        self.in_flight[rows] -= 1
        self._num_uses += 1
        self.used_at[rows] = self._num_uses
        if self._num_unreferenced:
            is_gone = (self.refs[rows] == 0) & (self.in_flight[rows] == 0)
            for row in dict.fromkeys(rows[is_gone].tolist()):
                self._num_unreferenced -= 1
                self._recycle(row)

    def check(self, handle_rows: I64, num_granted: int, num_released: int) -> None:
        """Raise `internal` with every term unless granted = bound + spare + returned + released, and references add
        up; a page is bound twice only if it is shared."""
        is_used = self.ident > 0
        bound = self.page[self.page != UNBOUND]
        refs = np.bincount(handle_rows, minlength=len(self.refs))
        pages = [*bound.tolist(), *self.spare, *self.returned]
        own = [*self.page[(self.page != UNBOUND) & ~self.is_shared].tolist(), *self.spare]
        shared = set(self.page[self.is_shared].tolist())
        num_unreferenced = int((is_used & (self.refs == 0)).sum())
        slots = [*self.slot[self.slot != UNBOUND].tolist(), *self.dropped, *(slot for slot, _ in self.restoring)]
        is_sound = (
            len(set(slots)) == len(slots)
            and self.num_swapped == int(np.count_nonzero(self.slot != UNBOUND))
            and not ((self.slot != UNBOUND) & ((self.page != UNBOUND) | ~is_used)).any()
            and not (self.is_lost & ((self.slot != UNBOUND) | (self.page != UNBOUND) | ~is_used)).any()
            and num_granted == len(pages) + num_released
            and len(set(own)) == len(own)
            and shared.isdisjoint(own)
            and bool((refs == self.refs).all())
            and bool((self.in_flight >= 0).all())
            and bool((self.unreached >= 0).all())
            and bool((self.unreached <= self.in_flight).all())
            and num_unreferenced == self._num_unreferenced
            and int(is_used.sum()) + len(self._free) == len(self.ident)
        )
        if not is_sound:
            raise PierayError(
                f"page space does not balance: granted {num_granted} against bound {len(bound)} + spare "
                f"{len(self.spare)} + returned {len(self.returned)} + released {num_released} (own {len(own)}, "
                f"distinct {len(set(own))}, shared as well {len(shared.intersection(own))}); handles "
                f"{len(handle_rows)}, references {int(self.refs.sum())}; frames {int(is_used.sum())}, free rows "
                f"{len(self._free)} of {len(self.ident)}; without a handle {num_unreferenced} "
                f"(counted {self._num_unreferenced}); uses in flight {int(self.in_flight.sum())}"
            )

    def _recycle(self, row: int) -> None:
        page = int(self.page[row])
        if page != UNBOUND:
            (self.returned if self.is_shared[row] else self.spare).append(page)
            self.page[row] = UNBOUND
        elif self.slot[row] != UNBOUND:
            self.dropped.append(int(self.slot[row]))
            self.slot[row] = UNBOUND
            self.num_swapped -= 1
        self.is_lost[row] = self.is_shared[row] = self.is_indexed[row] = False
        self.written[row] = 0
        self.ident[row] = 0
        self._free.append(row)

    def _grow(self) -> None:
        size = len(self.ident)
        self.page, self.slot = (
            np.concatenate((array, np.full(size, UNBOUND, np.int64))) for array in (self.page, self.slot)
        )
        self.refs, self.in_flight, self.unreached, self.ident, self.used_at = (
            np.concatenate((array, np.zeros(size, np.int64)))
            for array in (self.refs, self.in_flight, self.unreached, self.ident, self.used_at)
        )
        self.is_shared = np.concatenate((self.is_shared, np.zeros(size, np.bool_)))
        self.is_indexed = np.concatenate((self.is_indexed, np.zeros(size, np.bool_)))
        self.is_lost = np.concatenate((self.is_lost, np.zeros(size, np.bool_)))
        self.written = np.concatenate((self.written, np.zeros(size, np.uint64)))
        self._free[:0] = range(2 * size - 1, size - 1, -1)


def slot_bits(start: int, end: int) -> int:
    """The bits of slots `[start, end)`."""
    return (1 << end) - (1 << start)


def written_runs(written: int, start: int, end: int) -> Sequence[tuple[int, int]]:
    """What a copy must take so that a write of `[start, end)` loses nothing: at most one run (offset, count) on each
    side, from the outermost written slot; slots between that are not written may come along, unseen."""
    before = (written & slot_bits(0, start)).bit_length()
    after = written.bit_length()
    runs = [(0, before)] if before else []
    return [*runs, (end, after - end)] if after > end else runs
