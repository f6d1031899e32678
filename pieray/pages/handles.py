"""PageSpace: one inferlet's KV memory as its handlers see it.

Handles are virtual.  `alloc`, `fork` and `free` never wait and never need memory; a frame gets its
physical page when the first command that uses it is about to be sent.  A command is prepared in two
halves, because a guest may fork and free between enqueueing and flushing:

* `stage_forward` / `stage_copy`, in program order: everything is checked, copy-on-write is decided, and
  the frames are pinned.  An error changes nothing.
* `bind`, before sending: frames without a page get one from the spare pages; when those are short,
  nothing changes, and `shortfall` says how many to lease.

`finish` ends the command.

A slot may be read only after this inferlet has written it: a page still holds what its last owner left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pieray.errors import BadHandle, ConfigError, InvalidRequest, QuotaExceeded
from pieray.pages.frames import MAX_PAGE_SIZE, FrameTable
from pieray.pages.growing import GrowingStaging
from pieray.pages.prepared import Copy, Prepared
from pieray.pages.slots import HandleTable

__all__ = ["Copy", "PageSpace", "Prepared"]

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


class PageSpace(GrowingStaging):
    """Handles, frames and spare pages of one inferlet.  `limit` is limits.pages, `page_size` is in tokens.

    `on_frame_gone` is told the identity of each frame that nothing uses any more.
    """

    def __init__(self, page_size: int, limit: int, on_frame_gone: Callable[[int], None] | None = None) -> None:
        if not 1 <= page_size <= MAX_PAGE_SIZE:
            raise ConfigError(f"page_size is in [1, {MAX_PAGE_SIZE}]; given {page_size}")
        super().__init__(page_size, HandleTable("page"), FrameTable(on_frame_gone))
        self.limit = limit
        self.num_granted = 0
        self.num_released = 0

    @property
    def num_handles(self) -> int:
        return self._handles.num_live

    @property
    def num_bound(self) -> int:
        return self.num_granted - self.num_released - self.num_spare

    # --- handles -------------------------------------------------------------------------------

    def alloc(self, count: int) -> U32:
        """New handles, each on a frame of its own.  QuotaExceeded past limits.pages."""
        self._check_quota(count)
        return self._handles.open(self._frames.new(count))

    def fork(self, handles: U32) -> U32:
        """Second handles on the same frames; the first write through either gets a frame of its own."""
        slots = self._handles.find(handles)
        self._check_quota(len(handles))
        rows = self._handles.values(slots)
        forked = self._handles.open(rows)
        self._frames.add_refs(rows)
        return forked

    def free(self, handles: U32) -> None:
        """Close handles.  BadHandle for one that is not live, or named twice; then nothing is freed."""
        slots = self._handles.find(handles)
        if len(slots) > 1:
            _check_distinct(handles)
        rows = self._handles.values(slots)
        self._handles.close(slots)
        self._frames.drop_refs(rows)

    def frame_ids(self, handles: U32) -> I64:
        """Identities of the frames behind live handles."""
        return self._frames.ident.take(self._handles.values(self._handles.find(handles)))

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
        return pages

    def check(self) -> None:
        """Raise `internal` unless granted = bound + spare + released and all counts add up; O(frames)."""
        self._frames.check(self._handles.live_values(), self.num_granted, self.num_released)

    # --- inside --------------------------------------------------------------------------------

    def _check_quota(self, count: int) -> None:
        if count < 0:
            raise InvalidRequest(f"a count of pages is at least 0; given {count}")
        if self.num_handles + count > self.limit:
            raise QuotaExceeded(
                f"limits.pages is {self.limit}: {self.num_handles} handles are held, {count} more were asked for"
            )


def _check_distinct(handles: U32) -> None:
    values, counts = np.unique(handles, return_counts=True)
    if len(values) != len(handles):
        raise BadHandle(f"page handle {int(values[counts > 1][0])} is named twice")
