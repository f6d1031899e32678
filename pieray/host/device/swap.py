"""What pages of an inferlet held that it has given up (`pieray.host.device.preemption`), and how it comes back.

The batcher copies it to host memory; then frames have host slots in place of pages (`FrameTable`).  Where host memory
has no room, frames are lost.  Commands that use such frames wait for memory like any others, and a frame that one binds
gets its content back ahead of that command: from its host slot, or by being computed again
(`pieray.host.device.rebuild`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pieray.arrays import I64
from pieray.errors import PierayError
from pieray.host.device.commands import INTERNAL, Queue, wire_ticket
from pieray.host.device.prefixes import Prefixes
from pieray.host.device.rebuild import Rebuild, frames_of, is_repeatable
from pieray.messages import DropSwapped, Message, SwapIn, SwapOut
from pieray.messages.leases import Place
from pieray.pages.lineage import Lineage, Step, steps_for, steps_on, written_slots
from pieray.pages.space import PageSpace

_QUEUE = 0  # no guest's


class Loss(NamedTuple):
    """Frames that were lost at one time."""

    frames: frozenset[int]  # identities
    steps: Sequence[Step]  # that give them their content again, from nothing


class Swap:
    """Of one inferlet.  All methods are called with the instance's lock held."""

    def __init__(
        self, inferlet: int, pages: PageSpace, lineage: Lineage, most_pages: int, prefixes: Prefixes | None
    ) -> None:
        """`most_pages`: for what is computed again at one time, that is those of the pool.  `prefixes` None: nothing is
        looked up."""
        self._prefixes = prefixes
        self._inferlet = inferlet
        self._most_pages = most_pages
        self._unwanted: list[int] = []  # host slots of frames that are to be computed again
        self._pages = pages
        self._lineage = lineage
        self._losses: list[Loss] = []
        self.has_lost = False  # whether frames have ever been lost: before that no command need look
        self.ticket: int | None = None  # under which the batcher answers
        self._rows = np.zeros(0, np.int64)  # whose content is being copied
        self._empty = self._rows  # that hold nothing of note
        self._left = self._rows  # whose content others have
        self._names: dict[int, Place] = {}  # of frames that are away: what they hold, as it is known to the index
        self.num_out = 0  # pages that went to host memory, ever
        self.num_left = 0  # pages that were left to others, ever
        self.num_found = 0  # pages that were found by what they held, ever

    def copy(self, ticket: int, rows: I64, shared: Collection[int]) -> Message:
        """Frames, which nothing in flight uses, are to give up their pages: the copying of what these hold, but for
        `shared` pages that are known by their content: others have them."""
        self._forget_names(self._pages.idents(rows).tolist())  # of what they held when they were given up before
        rows, self._left = self._pages.without_shared(rows, shared)
        rows = np.concatenate([rows, self._left[~np.isin(self._left, keepable := self._rebuildable(self._left))]])
        self._left = keepable
        self._rows, self._empty = self._pages.with_content(rows)
        if self._prefixes is not None:
            self._names.update(self._prefixes.places(np.concatenate([self._rows, self._left])))
        self._pages.pin(self._rows)
        self._pages.pin(self._empty)
        self._pages.pin(self._left)
        self.ticket = ticket
        pages = self._pages.pages_of(self._rows).astype("<u4").tobytes()
        return SwapOut(wire_ticket(self._inferlet, ticket), self._inferlet, _QUEUE, 0, pages)

    def end(self, result: object) -> tuple[list[int], bool]:
        """The batcher's answer, slots or an error; the pages given up, and whether that is all there were."""
        slots = np.frombuffer(result, "<u4").astype(np.int64) if isinstance(result, bytes) else self._rows[:0]
        rows, self.ticket = self._rows, None
        pages = self._pages.swap_out(self._empty, np.full(len(self._empty), -1))
        num_kept = len(slots)
        if num_kept < len(rows) and not isinstance(result, PierayError):
            lost = self._rebuildable(rows)
            if len(lost) == len(rows):  # all of one text rather than its end, which takes its beginning to compute
                self._unwanted += slots.tolist()
                num_kept, slots = 0, slots[:0]
            else:
                lost = lost[~np.isin(lost, rows[:num_kept])]
            pages += self._lose(lost)
        self.num_out += num_kept
        pages += self._pages.swap_out(rows[:num_kept], slots)
        if not isinstance(result, PierayError):
            pages += self._lose(self._left)
            self.num_left += len(self._left)
        stay = self._pages.bound(np.concatenate([rows, self._left]))
        self._unpin()
        self._forget_names(self._pages.idents(stay).tolist())
        return pages, not len(stay)

    def _rebuildable(self, rows: I64) -> I64:
        """Those of the frames that can be computed again, each on the pages that the pool has."""
        if not self._is_log_good:
            return rows[:0]
        size = self._pages.page_size
        idents: list[int] = self._pages.idents(rows).tolist()
        steps = self._lineage.rebuild_plan(idents)
        noted = written_slots(steps, size)  # what was found for a command that is not sent yet is not in the log
        is_noted = [not written & ~noted[i] for i, written in zip(idents, self._pages.written(rows), strict=True)]
        rows = rows[is_noted]
        if self._can_run(steps):
            return rows
        idents = self._pages.idents(rows).tolist()
        return rows[[self._can_run(steps_for(steps, (ident,), size)) for ident in idents]]

    def _can_run(self, steps: Sequence[Step]) -> bool:
        return is_repeatable(steps) and len(frames_of(steps)) <= self._most_pages

    def _lose(self, rows: I64) -> list[int]:
        """Frames give up their pages and are to be computed again; it is noted how."""
        if not len(rows):
            return []
        lost: list[int] = self._pages.idents(rows).tolist()
        # one of an earlier loss may have been bound since, by a plan that overwrites it, and is lost anew
        self._losses = [loss._replace(frames=loss.frames.difference(lost)) for loss in self._losses]
        self._losses.append(Loss(frozenset(lost), self._lineage.rebuild_plan(lost)))
        self.has_lost = True
        return self._pages.lose(rows)

    def rebuild(self, ticket: int, queue: Queue, rows: I64) -> Rebuild | None:
        """The command that computes the lost ones of these frames again, and what they need, on top of what is there;
        to be sent before any that uses them.  None: it was asked for before."""
        used, lost = self._pages.lost_idents(rows), self._lost(rows)
        used &= lost
        if not used:
            return None
        wanted, given, steps = self._whole(used, lost)
        if not self._can_run(steps):  # they take more pages together than the pool has
            wanted, given, steps = self._whole(frozenset((min(used),)), lost)
        frames = frames_of(steps)
        prepared = self._pages.stage_rebuild(frames, wanted, given)
        losses = (loss._replace(frames=loss.frames - wanted) for loss in self._losses)
        self._losses = [loss for loss in losses if loss.frames]
        return Rebuild(ticket, queue, prepared, steps, frames, given)

    def take_back(self, rebuild: Rebuild) -> None:
        """It was not sent, and is not to be: its frames are computed with whatever uses them next."""
        lost = self._pages.lost_idents(rebuild.wanted)
        self._losses.append(Loss(lost, self._lineage.rebuild_plan(lost)))
        self._pages.unpin(rebuild.prepared.rows)

    def _lost(self, rows: I64) -> frozenset[int]:
        """Frames that nobody has been told yet to compute again: all that can be computed together with some of these.
        Once the log is of no use any more, those that were lost at one time."""
        if self._is_log_good:
            return frozenset().union(*(loss.frames for loss in self._losses))
        used = self._pages.lost_idents(rows)
        return next((loss.frames for loss in self._losses if not used.isdisjoint(loss.frames)), frozenset())

    @property
    def _is_log_good(self) -> bool:
        return self._lineage.is_complete and not self._pages.stager.has_failed

    def _whole(
        self, wanted: frozenset[int], lost: frozenset[int]
    ) -> tuple[frozenset[int], frozenset[int], Sequence[Step]]:
        """Frames with the lost ones that they need; those that are there and are read; and the steps."""
        while True:
            given, steps = self._steps(wanted)
            needed = wanted.union(lost.intersection(frames_of(steps)))
            if needed == wanted:
                return wanted, given, steps
            wanted = needed

    def _steps(self, wanted: frozenset[int]) -> tuple[frozenset[int], Sequence[Step]]:
        """What computes frames again, and which ones that are there it reads: as the log says, or, once that is of no
        use any more, as it said when they were lost."""
        size = self._pages.page_size
        if not self._is_log_good:
            loss = next(loss for loss in self._losses if wanted <= loss.frames)
            return frozenset(), steps_for(loss.steps, wanted, size)
        there = self._pages.full_idents(frames_of(self._lineage.rebuild_plan(wanted)))
        steps, given = steps_on(self._lineage.rebuild_plan(wanted | there), wanted, there, size)
        return given, steps

    # --- coming back by what they held -------------------------------------------------------------

    @property
    def has_names(self) -> bool:
        """Whether frames may be away that the index may know."""
        return bool(self._names)

    def sought(self, rows: I64) -> dict[int, Place]:
        """Of the frames, those that are away and may be known to the index, by identity; the first of texts first."""
        away = set(self._pages.idents(self._pages.unbound(rows)).tolist())
        found = [(place.depth, ident, place) for ident in away if (place := self._names.get(ident)) is not None]
        return {ident: place for _, ident, place in sorted(found)}

    def found(self, rows: I64, idents: Sequence[int], pages: Sequence[int]) -> list[int]:
        """Pages of the index that hold what frames of those identities did; those that are not taken after all."""
        row_of = dict(zip(self._pages.idents(away := self._pages.unbound(rows)).tolist(), away.tolist(), strict=True))
        pairs = list(zip(idents, pages, strict=False))
        taken = {row_of[ident]: page for ident, page in pairs if ident in row_of}
        self._pages.return_found(np.fromiter(taken, np.int64, len(taken)), list(taken.values()))
        self.num_found += len(taken)
        self._forget(ident for ident, _ in pairs if ident in row_of)
        return [page for ident, page in pairs if ident not in row_of] + list(pages[len(pairs) :])

    def came_back(self, rows: I64) -> None:
        """A command that used the frames has come so far that they hold what they did: others may find it again."""
        if self._prefixes is None:
            return
        rows = np.unique(self._pages.bound(rows))
        named = [
            (row, ident)
            for row, ident in zip(rows.tolist(), self._pages.idents(rows).tolist(), strict=True)
            if ident in self._names
        ]
        self._prefixes.tell({row: self._names[ident] for row, ident in named})
        self._forget(ident for _, ident in named)

    def _forget(self, idents: Iterable[int]) -> None:
        gone = frozenset(idents)
        self._forget_names(gone)
        losses = (loss._replace(frames=loss.frames - gone) for loss in self._losses)
        self._losses = [loss for loss in losses if loss.frames]

    def _forget_names(self, idents: Iterable[int]) -> None:
        for ident in idents:
            self._names.pop(ident, None)

    def ahead(self) -> list[Message]:
        """What is to be sent before anything that uses pages bound by now, and what is to be told."""
        messages: list[Message] = []
        if restoring := self._pages.take_restoring():
            slots, pages = np.array(restoring, "<u4").T
            messages.append(
                SwapIn(
                    wire_ticket(self._inferlet, INTERNAL), self._inferlet, _QUEUE, 0, slots.tobytes(), pages.tobytes()
                )
            )
        if dropped := [*self._pages.take_dropped(), *self._unwanted]:
            self._unwanted = []
            messages.append(DropSwapped(self._inferlet, np.array(dropped, "<u4").tobytes()))
        return messages

    def stop(self) -> None:
        """The device is lost, or the guest has ended."""
        self.ticket = None
        self._unpin()

    def _unpin(self) -> None:
        self._pages.unpin(self._rows)
        self._pages.unpin(self._empty)
        self._pages.unpin(self._left)
        self._rows = self._empty = self._left = self._rows[:0]
