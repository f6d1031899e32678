"""A command on its way to the batcher, as its inferlet's PageSpace has prepared it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pieray.arrays import I64, U32, U64
from pieray.errors import Cancelled

Copy = tuple[int, int, int, int, int]  # source, offset, destination, offset, count: tokens, within one page each

_NO_PAGES: U32 = np.zeros(0, np.uint32)


@dataclass(slots=True, eq=False)
class Prepared:
    """A command whose frames are pinned until `Stager.finish`.  `pages` and `copies` are filled by `bind`.

    `pages` are physical, in the order of the handles; `copies` must run before the command itself.
    """

    rows: I64  # frames in the order of the handles, then sources of copies
    num_pages: int
    reads: list[tuple[int, int]]  # rows and slots (bits) that it reads, besides all of rows[:num_full]
    num_full: int
    writes: list[tuple[int, int]]  # rows and slots (bits) that it writes
    row_copies: list[Copy]  # as `copies`, of rows
    frames: I64  # unique identities of the first num_pages rows: what lineage knows them by
    frame_copies: list[Copy]  # as `copies`, of identities
    moved: list[tuple[int, int, int]]  # copy-on-write with copies: slot of the handle, the row it had, the row it has
    error: Cancelled | None = None  # set by `bind`: a command that was to write what this one reads has failed
    pages: U32 = field(default_factory=lambda: _NO_PAGES)
    copies: list[Copy] = field(default_factory=list)
    hidden: U64 | None = None  # of rows[:num_full], the slots (bits) that it does not read after all; None: none
