"""Lookup before compute: what commands are to write is asked for by its content, and what they have written is told.

A pass or a plan that begins with fresh pages, where its text or a page of it does, has them looked up when its lease
is asked for.  Pages found take the place of fresh ones, shared, and the command runs the rest:

    before   kv_len 0  | fresh | fresh | fresh | fresh |      64 tokens to run
    found               page 7   page 3                       which hold the first 32
    after    kv_len 32 | page 7| page 3| fresh | fresh |      32 tokens to run

At least one token is run, and every row that an output is asked of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from pieray.arrays import I64, U32
from pieray.errors import DeviceLost
from pieray.host.device.commands import Command
from pieray.messages import PRIVATE, IndexPages, Message
from pieray.messages.leases import Place
from pieray.pages.contents import Contents, chain, positions_of, root_of
from pieray.pages.growing import Growing
from pieray.pages.lineage import Lineage
from pieray.pages.space import PageSpace

LEAST_PAGES = 4
"""Pages of a command for which a lookup is sent that no lease is due with: a round trip costs what few tokens cost."""

LOOK_PART = 0.25
"""Of the log, by which it has grown when it is looked through again: a pass costs a few of its steps, however long."""


class Ledger(Protocol):
    """What is needed of the device client."""

    def ask_ledger(self, message: Message) -> None:
        """Collect a message for the ResourceManager; raises DeviceLost when it is gone."""


class Prefixes:
    """Of one inferlet.  All methods are called with the instance's lock held."""

    def __init__(
        self, inferlet: int, ledger: Ledger, pages: PageSpace, lineage: Lineage, *, tenant: str, model: str
    ) -> None:
        self._inferlet = inferlet
        self._ledger = ledger
        self._pages = pages
        self._lineage = lineage
        self._root = root_of(tenant, model, pages.page_size)
        self._num_looked = 0  # steps of the log, when it was looked through last for what a command has written

    # --- before a command runs -------------------------------------------------------------------

    def hashes(self, command: Command) -> list[bytes]:
        """What is to be looked up for a command that is not sent: hashes of the pages that it is to write, from its
        first on; none if it has nothing that may be found."""
        size = self._pages.page_size
        text = command.text()
        most = command.num_skippable // size
        if text is None or text.kv_len % size or text.adapter >= PRIVATE or not command.queue.is_reusing or most < 1:
            return []
        first = text.kv_len // size
        count = min(most, self._pages.num_fresh(command.prepared, first))
        if count < 1:
            return []
        before = self._root
        if first:
            hashes = self._hashes_of(command.prepared.rows[:first])
            if len(hashes) < first:
                return []
            before = hashes[-1]
        num_tokens = count * size
        positions = text.positions or positions_of(text.kv_len, num_tokens)
        return chain(before, text.tokens[: 4 * num_tokens], positions, size, text.adapter, text.media)

    def adopt(self, command: Command, pages: Sequence[int], commands: Sequence[Command]) -> int:
        """Pages found for a command that is not sent: as many as can be take the place of its fresh ones, and are not
        computed.  How many of them.

        `commands`: all that are not finished.
        """
        text, size = command.text(), self._pages.page_size
        if text is None:  # it was given a mask, say, after it was flushed
            return 0
        first = text.kv_len // size
        count = min(len(pages), command.num_skippable // size, self._pages.num_fresh(command.prepared, first))
        others = _rows_to_write((c for c in commands if c is not command), size)
        rows = command.prepared.rows[first : first + count].tolist()
        count = next((index for index, row in enumerate(rows) if row in others), count)
        if count:
            self._pages.adopt_found(command.prepared, first, pages[:count])
            command.skip(count * size)
        return count

    # --- when it has run -------------------------------------------------------------------------

    def is_due(self, num_pages: int) -> bool:
        """Whether to look through the log for what a command has written, so many pages.  For a few the log must have
        grown by a part of itself: they are found with later ones, when they are closed, or when the inferlet ends."""
        num_steps = self._lineage.num_steps
        num_new = num_steps - self._num_looked if num_steps >= self._num_looked else num_steps
        if num_pages < LEAST_PAGES and num_new < num_steps * LOOK_PART:
            return False
        self._num_looked = num_steps
        return True

    def enter(self, rows: I64, commands: Sequence[Command]) -> None:
        """Frames that hold a text from its beginning on: let those that are full be found.

        `commands`: those that may yet write to them.
        """
        pages = self._pages
        rows = rows[: pages.num_written(rows)]
        if pages.num_known(rows) == len(rows):
            return
        busy = _rows_to_write(commands, pages.page_size)
        count = next((index for index, row in enumerate(rows.tolist()) if row in busy), len(rows))
        names = self._hashes_of(rows[:count])
        places = map(Place, names, [self._root, *names], range(len(names)))
        known = self._pages.num_known(rows)
        self.tell(dict(list(zip(rows.tolist(), places, strict=False))[known:]))

    def enter_all(self, commands: Sequence[Command]) -> None:
        """The inferlet has ended: the same for all that it has."""
        unknown = self._pages.unknown_rows()
        if not len(unknown) or not self._may_tell():
            return
        rows_of = dict(zip(self._pages.idents(unknown).tolist(), unknown.tolist(), strict=True))
        busy = _rows_to_write(commands, self._pages.page_size)
        contents = Contents(self._lineage.rebuild_plan(rows_of), self._root, self._pages.page_size)
        found = {row: contents.place_of(frame) for frame, row in rows_of.items() if row not in busy}
        self.tell({row: place for row, place in found.items() if place is not None})

    def closing(self, handles: U32, commands: Sequence[Command]) -> None:
        """Handles are about to be closed, those of a whole text perhaps: what is lost with them is to be found."""
        rows = self._pages.closing_rows(handles)
        if len(rows):
            self.enter(rows, commands)

    def places(self, rows: I64) -> dict[int, Place]:
        """Of the frames, those that are known by their content, by identity: what they are known as."""
        rows = rows[self._pages.is_known(rows)]
        if not len(rows) or not self._may_tell():
            return {}
        idents = self._pages.idents(rows).tolist()
        contents = Contents(self._lineage.rebuild_plan(idents), self._root, self._pages.page_size)
        return {ident: place for ident in idents if (place := contents.place_of(ident)) is not None}

    # --- inside ----------------------------------------------------------------------------------

    def _may_tell(self) -> bool:
        return self._lineage.is_complete and not self._pages.stager.has_failed

    def _hashes_of(self, rows: I64) -> list[bytes]:
        """Of the frames, one behind the other from the beginning of a text on, as far as they are plain."""
        if not len(rows) or not self._may_tell():
            return []
        frames = self._pages.idents(rows).tolist()
        return Contents(self._lineage.rebuild_plan(frames), self._root, self._pages.page_size).chain_of(frames)

    def tell(self, places: dict[int, Place]) -> None:
        """What frames hold is to be found."""
        if not places:
            return
        pages = self._pages.enter(np.fromiter(places, np.int64))
        found = places.values()
        message = IndexPages(
            self._inferlet,
            np.array(pages, "<u4").tobytes(),
            b"".join(place.name for place in found),
            b"".join(place.before for place in found),
            np.array([place.depth for place in found], "<u4").tobytes(),
        )
        with contextlib.suppress(DeviceLost):  # else what the pages hold is gone with it
            self._ledger.ask_ledger(message)


def _rows_to_write(commands: Iterable[Command], page_size: int) -> set[int]:
    """Frames that unfinished commands write to, or may yet."""
    rows: set[int] = set()
    for command in commands:
        prepared = command.prepared
        rows.update(row for row, _ in prepared.writes)
        if isinstance(prepared, Growing):
            rows.update(prepared.all_rows[prepared.num_written // page_size :].tolist())
    return rows
