"""Frames of a PageSpace that are being exported: held until the export has been made, and never written to again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pieray.arrays import I64, U32, U64
from pieray.errors import Cancelled, InvalidRequest
from pieray.pages.frames import slot_bits
from pieray.pages.staging import Stager

NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ExportedFrames:
    """Frames held for an export, as they were when it was asked for: whatever writes to them copies them first."""

    rows: I64
    written: U64  # the slots (bits) exported
    num_tokens: int


class Exports:
    """Those under way."""

    def __init__(self, stager: Stager, check_quota: Callable[[int], None]) -> None:
        """`check_quota` raises QuotaExceeded if so many handles more are too many."""
        self._stager = stager
        self._check_quota = check_quota
        self._held: dict[ExportedFrames, None] = {}
        self.num_rows = 0

    def rows(self) -> I64:
        """The frames of all, once for each export."""
        return np.concatenate([NONE, *(exported.rows for exported in self._held)])

    def begin(self, handles: U32, num_tokens: int) -> ExportedFrames:
        """Hold the frames behind the first `num_tokens` tokens for an export, until `end`.

        Raises BadHandle, QuotaExceeded (they count as handles), and InvalidRequest if the tokens were not all written
        (or hidden), do not fit, or a page is named twice or holds none of them.
        """
        self._stager.runs.settle()
        size = self._stager.page_size
        slots = self._stager.handles.find(handles)
        if not 1 <= num_tokens <= len(handles) * size:
            raise InvalidRequest(
                f"{len(handles)} pages of {size} hold from 1 to {len(handles) * size} tokens; given {num_tokens}"
            )
        slots = slots[: -(-num_tokens // size)]
        self._check_quota(len(slots))
        rows = self._stager.handles.values(slots)
        wanted = np.full(len(slots), self._stager.full, np.uint64)
        wanted[-1] = slot_bits(0, num_tokens - (len(slots) - 1) * size)
        written = self._stager.written(slots) & wanted
        if (self._stager.readable(slots) & wanted != wanted).any():
            raise InvalidRequest(f"not all of the first {num_tokens} tokens were written; forward or copy them first")
        if not written.all() or len(np.unique(rows)) != len(rows):
            raise InvalidRequest("a page to export is named twice, or all its tokens are masked and were never written")
        exported = ExportedFrames(rows, written, num_tokens)
        self._stager.frames.add_refs(rows)
        self._held[exported] = None
        self.num_rows += len(rows)
        return exported

    def freeze(self, exported: ExportedFrames) -> list[int]:
        """Nothing in flight writes to the frames: the pages to export.

        Raises Cancelled if a command that was to write them has failed, and InvalidRequest if one page, imported
        several times, is among them twice.
        """
        self._stager.runs.settle()
        if (self._stager.frames.written.take(exported.rows) & exported.written != exported.written).any():
            raise Cancelled("a command that was to write what is exported has failed")
        pages: list[int] = self._stager.frames.page.take(exported.rows).tolist()
        if len(set(pages)) != len(pages):
            raise InvalidRequest("a page to export is named twice: it was imported more than once")
        self._stager.frames.is_shared[exported.rows] = True
        return pages

    def end(self, exported: ExportedFrames) -> None:
        """The export has been made, or has failed."""
        del self._held[exported]
        self.num_rows -= len(exported.rows)
        self._stager.frames.drop_refs(exported.rows)
