"""PageSpace: one inferlet's KV memory as its handlers see it.

Handles are virtual.  `alloc`, `fork` and `free` never wait and never need memory; a frame gets its
physical page when the first command that uses it is about to be sent.  A command is prepared in two
halves, because a guest may fork and free between enqueueing and flushing:

* `stager.forward` / `stager.copy`, in program order: everything is checked, copy-on-write is decided, and
  the frames are pinned.  An error changes nothing.
* `stager.bind`, before sending: frames without a page get one from the spare pages; when those are short,
  nothing changes, and `shortfall` says how many to lease.

`stager.finish` ends the command.

A slot may be read only after it was written by this inferlet, or by who exported it: a page still holds what its
last owner left.  Slots that are masked need not be: no pass sees them (`visible`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from pieray.arrays import I64, U32, U64, Bools
from pieray.errors import BadHandle, ConfigError, InvalidRequest, QuotaExceeded
from pieray.pages.exporting import Exports
from pieray.pages.frames import MAX_PAGE_SIZE, UNBOUND, FrameTable, slot_bits
from pieray.pages.growing import Runs
from pieray.pages.handles import HandleTable
from pieray.pages.marks import Marks
from pieray.pages.plan_staging import PlanStager
from pieray.pages.prepared import Prepared
from pieray.pages.staging import Stager


class PageSpace:
    """Handles, frames and spare pages of one inferlet, on one model."""

    def __init__(
        self,
        page_size: int,
        limit: int,
        handles: HandleTable | None = None,
        num_elsewhere: Callable[[], int] = lambda: 0,
    ) -> None:
        """`page_size` is in tokens, `limit` is limits.pages.  `num_elsewhere`: what others count against it."""
        if not 1 <= page_size <= MAX_PAGE_SIZE:
            raise ConfigError(f"page_size is in [1, {MAX_PAGE_SIZE}]; given {page_size}")
        self.page_size = page_size
        self._handles = handles or HandleTable("page")
        self._num_elsewhere = num_elsewhere
        self._frames = FrameTable()
        self._marks = Marks()
        self.runs = Runs(page_size, self._frames)
        self.stager = Stager(page_size, self._handles, self._frames, self._marks, self.runs)
        self.plans = PlanStager(self.stager)
        self._full = self.stager.full
        self.limit = limit
        self.num_granted = 0
        self.num_released = 0
        self.exports = Exports(self.stager, self._check_quota)

    @property
    def num_handles(self) -> int:
        return self._handles.num_live

    @property
    def num_counted(self) -> int:
        """What counts against limits.pages: handles, and pages of exports under way."""
        return self.num_handles + self.exports.num_rows

    @property
    def num_claimed(self) -> int:
        """What counts against limits.pages where others have pages too: those that are kept spare for it included."""
        return max(self.num_counted, self.num_bound + self.num_reserved)

    @property
    def num_bound(self) -> int:
        return self.num_held - self.num_spare - len(self._frames.returned)

    @property
    def num_spare(self) -> int:
        """Leased pages that nothing uses."""
        return len(self._frames.spare)

    @property
    def num_held(self) -> int:
        """Leased pages, whatever for."""
        return self.num_granted - self.num_released

    # --- handles -------------------------------------------------------------------------------

    def alloc(self, count: int) -> U32:
        """New handles, each on a frame of its own.  QuotaExceeded past limits.pages."""
        self._check_quota(count)
        return self._handles.open(self._frames.new(count))

    def fork(self, handles: U32) -> U32:
        """Second handles on the same frames; the first write through either gets a frame of its own."""
        self.runs.settle()
        slots = self._handles.find(handles)
        self._check_quota(len(handles))
        rows = self._handles.values(slots)
        forked = self._handles.open(rows)
        self._frames.add_refs(rows)
        self._marks.inherit(slots, self._handles.find(forked))
        return forked

    def free(self, handles: U32) -> None:
        """Close handles.  BadHandle for one that is not live, or named twice; then nothing is freed."""
        slots = self._handles.find(handles)
        if len(slots) > 1:
            _check_distinct(handles)
        rows = self._handles.values(slots)
        self._marks.forget(slots)
        self._handles.close(slots)
        self._frames.drop_refs(rows)

    def mask(self, handle: int, offset: int, count: int, *, is_visible: bool) -> None:
        """Hide slots `[offset, offset + count)` of a page from later passes through this handle and its later forks, or
        show them again.  Raises BadHandle, and InvalidRequest for a range that leaves the page."""
        slots = self._handles.find(np.array([handle], np.uint32))
        if offset < 0 or count < 0 or offset + count > self.page_size:
            raise InvalidRequest(f"slots [{offset}, {offset + count}) are outside a page of {self.page_size} tokens")
        self._marks.hide(slots, np.array([slot_bits(offset, offset + count)], np.uint64), is_visible=is_visible)

    def truncate(self, handles: U32, num_tokens: int) -> None:
        """Of the tokens in the pages of `handles`, in order, keep the first: later slots count as not written through
        these handles.  Raises BadHandle (also for one named twice), and InvalidRequest for more than they hold."""
        self.runs.settle()
        slots = self._handles.find(handles)
        _check_distinct(handles)
        size = self.page_size
        if not 0 <= num_tokens <= len(handles) * size:
            raise InvalidRequest(
                f"truncate keeps from 0 to {len(handles) * size} tokens, what {len(handles)} pages of {size} hold; "
                f"given {num_tokens}"
            )
        first, offset = divmod(num_tokens, size)
        bits = np.full(len(slots) - first, self._full, np.uint64)
        bits[:1] &= ~np.uint64(slot_bits(0, offset))
        self._marks.cut_off(slots[first:], bits)

    def visible(self, handles: U32, kv_len: int) -> Bools | None:
        """Which of the first `kv_len` tokens in the pages of `handles` a pass may see, [kv_len]; None: all of them.
        Raises BadHandle."""
        if not self._marks.is_used or kv_len > len(handles) * self.page_size:  # such a pass cannot be staged
            return None
        hidden = self.stager.hidden(self._handles.find(handles)[: -(-kv_len // self.page_size)], kv_len)
        if hidden is None:
            return None
        bits = np.unpackbits(hidden.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        seen: Bools = bits[:, : self.page_size].reshape(-1)[:kv_len] == 0
        return seen

    def frame_ids(self, handles: U32) -> I64:
        """Identities of the frames behind live handles."""
        return self._frames.ident.take(self._handles.values(self._handles.find(handles)))

    def live_frames(self) -> list[int]:
        """Identities of all frames that a handle, an export under way or a command still uses."""
        idents: list[int] = self._frames.ident[self._frames.ident > 0].tolist()
        return idents

    # --- leased pages --------------------------------------------------------------------------

    def grant(self, pages: Sequence[int]) -> None:
        """Leased pages become spare; the first is the first to be bound."""
        self._frames.spare.extend(reversed(pages))
        self.num_granted += len(pages)

    def surplus(self, keep: int) -> list[int]:
        """Take all spare pages but `keep` out, to be released to the ResourceManager."""
        count = max(0, self.num_spare - keep)
        pages = self._frames.spare[:count]
        del self._frames.spare[:count]
        self.num_released += count
        self._frames.num_reserved = min(self._frames.num_reserved, self.num_spare)
        return pages

    @property
    def has_unused(self) -> bool:
        """Whether there are pages that could be released."""
        return bool(self._frames.spare or self._frames.returned)

    @property
    def num_reserved(self) -> int:
        """Spare pages that the guest has asked for, and that are not for others."""
        return self._frames.num_reserved

    def reserve(self, count: int, num_coming: int = 0) -> int:
        """Keep that many pages spare for what comes next; returns how many to lease for that.

        QuotaExceeded if they, with those in use and the `num_coming` asked for before, are more than limits.pages.
        """
        self.check_limit(count, num_coming)
        self._frames.num_reserved = max(self.num_reserved, count)
        return max(0, count - self.num_spare)

    def check_limit(self, count: int, num_coming: int = 0) -> None:
        """Raise QuotaExceeded if so many pages more, with those in use and the `num_coming`, are over limits.pages."""
        num_used = self.num_bound + self._num_elsewhere()
        if count < 0 or num_used + num_coming + count > self.limit:
            coming = f" and {num_coming} on their way" if num_coming else ""
            raise QuotaExceeded(
                f"limits.pages is {self.limit}: {num_used} pages are in use{coming}, {count} more were asked for"
            )

    def unreserve(self) -> None:
        """Spare pages are for others again."""
        self._frames.num_reserved = 0

    def take_returned(self) -> list[int]:
        """Take out the pages of shared frames that nothing here uses any more, to be released."""
        pages, self._frames.returned = self._frames.returned, []
        self.num_released += len(pages)
        return pages

    # --- pages given up for others -----------------------------------------------------------------

    @property
    def num_swapped(self) -> int:
        """Frames whose content is in host slots."""
        return self._frames.num_swapped

    def swappable_rows(self, kept: Collection[int]) -> I64:
        """Frames with pages that can be given up while nothing is in flight.  Not those on `kept` pages, or that are
        being exported."""
        rows = self._rows_not_exported()
        found: I64 = rows[~np.isin(self._frames.page.take(rows), list(kept))]
        return found

    def unused_rows(self, used: I64) -> I64:
        """Frames with pages that can be given up at any time, but for the `used` ones: the least recently used first.
        Not those that are being exported."""
        rows = self._rows_not_exported()
        rows = rows[~np.isin(rows, used)]
        found: I64 = rows[np.argsort(self._frames.used_at.take(rows), kind="stable")]
        return found

    def _rows_not_exported(self) -> I64:
        rows = np.flatnonzero(self._frames.page != UNBOUND)
        return rows[~np.isin(rows, exported)] if len(exported := self.exports.rows()) else rows

    def without_shared(self, rows: I64, shared: Collection[int]) -> tuple[I64, I64]:
        """Frames, and those of them on `shared` pages that are known by their content."""
        frames = self._frames
        is_left = frames.is_indexed.take(rows) & np.isin(frames.page.take(rows), list(shared))
        return rows[~is_left], rows[is_left]

    def is_known(self, rows: I64) -> Bools:
        """Which of the frames are known by their content."""
        return self._frames.is_indexed.take(rows)

    def with_content(self, rows: I64) -> tuple[I64, I64]:
        """Frames whose content is to be kept, and those that hold nothing of note."""
        self.runs.settle()
        is_written = self._frames.written.take(rows) != 0
        return rows[is_written], rows[~is_written]

    def written(self, rows: I64) -> list[int]:
        """The slots (bits) of frames that are written."""
        found: list[int] = self._frames.written.take(rows).tolist()
        return found

    def own_pages(self) -> frozenset[int]:
        """Pages of frames that nobody else has."""
        frames = self._frames
        return frozenset(frames.page[(frames.page != UNBOUND) & ~frames.is_shared].tolist())

    def pin(self, rows: I64) -> None:
        """The frames stay, whatever is freed, until `unpin` is given the same."""
        self._frames.pin(rows)

    def unpin(self, rows: I64) -> None:
        self._frames.unpin(rows)

    def pages_of(self, rows: I64) -> I64:
        """The physical pages of bound frames."""
        return self._frames.page.take(rows)

    def swap_out(self, rows: I64, slots: I64) -> list[int]:
        """Bound frames give up their pages, which are to be released; what they hold is in those host slots, -1 for
        nothing of note."""
        self.num_released += len(rows)
        return self._frames.swap_out(rows, slots)

    def end_rebuild(self, prepared: Prepared) -> None:
        """The command has finished, or has failed: then what the frames held counts as not written."""
        self._frames.is_lost[[row for row, _ in prepared.writes]] = False

    def lose(self, rows: I64) -> list[int]:
        """Bound frames give up their pages, which are to be released; what they hold is to be computed again."""
        pages = self.swap_out(rows, np.full(len(rows), UNBOUND))
        self._frames.is_lost[rows] = True
        return pages

    def away_rows(self) -> I64:
        """Frames whose content is in host slots, or lost."""
        return np.flatnonzero((self._frames.slot != UNBOUND) | self._frames.is_lost)

    def is_lost(self, rows: I64) -> bool:
        """Whether one of the frames is to be computed again."""
        return bool(self._frames.is_lost.take(rows).any())

    def lost_idents(self, rows: I64) -> frozenset[int]:
        """Identities of those of the frames that are to be computed again."""
        return frozenset(self._frames.ident.take(rows[self._frames.is_lost.take(rows)]).tolist())

    def full_idents(self, idents: Sequence[int]) -> frozenset[int]:
        """Of the frames of those identities, the ones that are full and have their content, in a page or host slot."""
        frames = self._frames
        is_there = (frames.page != UNBOUND) | (frames.slot != UNBOUND)
        is_there &= (frames.written == self._full) & np.isin(frames.ident, idents)
        return frozenset(frames.ident[is_there].tolist())

    def stage_rebuild(self, idents: Sequence[int], lost: Collection[int], given: Collection[int]) -> Prepared:
        """Pin, for a command that computes lost frames again, the frames of those identities, in order: the `lost` ones
        themselves, the `given` ones that it reads, and others in place of those that are gone or have their content."""
        frames = self._frames
        is_written = frames.is_lost & np.isin(frames.ident, list(lost))
        used = np.flatnonzero(is_written | np.isin(frames.ident, list(given)))
        row_of = dict(zip(frames.ident.take(used).tolist(), used.tolist(), strict=True))
        rows = np.array([row_of.get(ident, -1) for ident in idents], np.int64)
        rows[rows < 0] = frames.new_unreferenced(int(np.count_nonzero(rows < 0)))
        writes = [(row, int(frames.written[row])) for row in np.flatnonzero(is_written).tolist()]
        reads = [(row_of[ident], int(self._full)) for ident in given]
        return self.stager.pin(rows, reads, writes, [], [])

    def bound(self, rows: I64) -> I64:
        """Of the frames, those with a page."""
        found: I64 = rows[self._frames.page.take(rows) != UNBOUND]
        return found

    def unbound(self, rows: I64) -> I64:
        """Of the frames, those without a page."""
        found: I64 = rows[self._frames.page.take(rows) == UNBOUND]
        return found

    def hold(self, rows: I64) -> Prepared:
        """Pin frames for a command that only wants them bound."""
        return self.stager.pin(rows.copy(), [], [], [], [])

    def take_restoring(self) -> list[tuple[int, int]]:
        """Take out the host slots whose content is to be brought back, each with the page for it."""
        found, self._frames.restoring = self._frames.restoring, []
        return found

    def take_dropped(self) -> list[int]:
        """Take out the host slots that nobody wants any more."""
        found, self._frames.dropped = self._frames.dropped, []
        return found

    # --- pages known by their content ------------------------------------------------------------

    def num_fresh(self, prepared: Prepared, first: int) -> int:
        """Of the command's pages from `first` on, how many there are before one that has memory, or that a run is yet
        to get to."""
        rows = prepared.rows[first : prepared.num_pages]
        frames = self._frames
        is_used = (frames.page.take(rows) != UNBOUND) | (frames.slot.take(rows) != UNBOUND) | frames.is_lost.take(rows)
        is_used |= frames.unreached.take(rows) > 0
        return int(np.argmax(is_used)) if is_used.any() else len(rows)

    def adopt_found(self, prepared: Prepared, first: int, pages: Sequence[int]) -> None:
        """Fresh pages of the command, from `first` on, are leased ones that hold what it was to write there.  Whoever
        writes to them copies them first."""
        self._frames.adopt_found(prepared.rows[first : first + len(pages)], pages)
        self.num_granted += len(pages)

    def return_found(self, rows: I64, pages: Sequence[int]) -> None:
        """Frames that are away get pages that hold what they did."""
        self._frames.return_found(rows, pages)
        self.num_granted += len(pages)

    def rows_of(self, handles: U32) -> I64:
        """The frames behind live handles."""
        return self._handles.values(self._handles.find(handles))

    def closing_rows(self, handles: U32) -> I64:
        """The same, if one of them that is full would lose its last handle with these, and is not known by its content;
        else none."""
        rows = self.rows_of(handles)
        is_closing = (self._frames.refs.take(rows) == 1) & self._is_unknown(rows)
        return rows if is_closing.any() else rows[:0]

    def unknown_rows(self) -> I64:
        """Frames that are full, have memory, and are not known by their content."""
        self.runs.settle()
        return np.flatnonzero((self._frames.ident > 0) & self._is_unknown(np.arange(len(self._frames.ident))))

    def _is_unknown(self, rows: I64) -> Bools:
        frames = self._frames
        is_full = (frames.written.take(rows) == self._full) & (frames.page.take(rows) != UNBOUND)
        is_unknown: Bools = is_full & ~frames.is_indexed.take(rows)
        return is_unknown

    def num_known(self, rows: I64) -> int:
        """How many of the frames, from the first on, are known by their content."""
        is_known = self._frames.is_indexed.take(rows)
        return len(rows) if is_known.all() else int(np.argmin(is_known))

    def num_written(self, rows: I64) -> int:
        """How many of the frames, from the first on, are full and have memory."""
        frames = self._frames
        is_full = (frames.written.take(rows) == self._full) & (frames.page.take(rows) != UNBOUND)
        return len(rows) if is_full.all() else int(np.argmin(is_full))

    def idents(self, rows: I64) -> I64:
        """Identities of frames."""
        return self._frames.ident.take(rows)

    def enter(self, rows: I64) -> list[int]:
        """The frames are known by their content from now on: whoever writes to them copies them first.  Their pages."""
        self._frames.is_shared[rows] = self._frames.is_indexed[rows] = True
        pages: list[int] = self._frames.page.take(rows).tolist()
        return pages

    def check_room(self, count: int) -> None:
        """Raise QuotaExceeded if so many handles more are past limits.pages."""
        self._check_quota(count)

    def adopt(self, pages: Sequence[int], written: U64) -> U32:
        """Handles to an export's pages, of which those slots were written; whoever writes to them copies them first.

        QuotaExceeded past limits.pages: then the pages are to be released.
        """
        self._check_quota(len(pages))
        rows = self._frames.new(len(pages))
        self._frames.adopt(rows, list(pages), written)
        self.num_granted += len(pages)
        return self._handles.open(rows)

    def check(self) -> None:
        """Raise `internal` unless granted = bound + spare + released and all counts add up; O(frames)."""
        rows = np.concatenate([self._handles.live_values(), self.exports.rows()])
        self._frames.check(rows, self.num_granted, self.num_released)

    # --- inside --------------------------------------------------------------------------------

    def _check_quota(self, count: int) -> None:
        if count < 0:
            raise InvalidRequest(f"a count of pages is at least 0; given {count}")
        num_held = self.num_counted + self._num_elsewhere()
        if num_held + count > self.limit:
            raise QuotaExceeded(
                f"limits.pages is {self.limit}: {num_held} handles are held, {count} more were asked for"
            )


def _check_distinct(handles: U32) -> None:
    values, counts = np.unique(handles, return_counts=True)
    if len(values) != len(handles):
        raise BadHandle(f"page handle {int(values[counts > 1][0])} is named twice")
