"""How an inferlet gives up its pages for others, and goes on later as if nothing had been.

The ResourceManager asks for it (`Preempt`).  Nothing new is sent then, plans are stopped after the step in progress,
and when nothing is in flight any more, the batcher copies what the pages hold to host memory; then they are released:

    going     is_going: plans stop, what is in flight is awaited
    copying   ticket: the batcher copies
    gone      frames have host slots in place of pages (`FrameTable`), or are lost; plans are staged again

From there on its commands wait for memory like any others'.  A frame that a command binds gets its content back ahead
of that command: from its host slot, or, where host memory had no room, by computing it again (`pieray.host.rebuild`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pieray.errors import PierayError
from pieray.host.commands import INTERNAL, Queue, wire_ticket
from pieray.host.rebuild import Rebuild, frames_of, is_repeatable
from pieray.messages import DropSwapped, Message, SwapIn, SwapOut
from pieray.pages.handles import PageSpace
from pieray.pages.lineage import Lineage, Step, steps_for

I64 = npt.NDArray[np.int64]
_QUEUE = 0  # no guest's


class Loss(NamedTuple):
    """Frames that were lost at one time."""

    frames: frozenset[int]  # identities
    steps: Sequence[Step]  # that give them their content again, from nothing


class Swap:
    """Of one inferlet.  All methods are called with the instance's lock held."""

    def __init__(self, inferlet: int, pages: PageSpace, lineage: Lineage, most_pages: int) -> None:
        """`most_pages`: for what is computed again at one time, that is those of the pool."""
        self._inferlet = inferlet
        self._most_pages = most_pages
        self._unwanted: list[int] = []  # host slots of frames that are to be computed again
        self._pages = pages
        self._lineage = lineage
        self._losses: list[Loss] = []
        self.has_lost = False  # whether frames have ever been lost: before that no command need look
        self.is_going = False
        self.ticket: int | None = None  # under which the batcher answers
        self._kept: frozenset[int] = frozenset()
        self._rows = np.zeros(0, np.int64)  # whose content is being copied
        self._empty = self._rows  # that hold nothing of note
        self.num_out = 0  # pages copied out, ever

    def begin(self, kept: Collection[int]) -> None:
        """All pages but those are to be given up."""
        self.is_going, self._kept = True, frozenset(kept)

    def copy(self, ticket: int) -> Message | None:
        """Nothing is in flight: the copying of what the pages hold; None if nothing does, then call `end`."""
        self._rows, self._empty = self._pages.swappable(self._kept)
        self._pages.pin(self._rows)
        self._pages.pin(self._empty)
        self.ticket = ticket
        if not len(self._rows):
            return None
        pages = self._pages.pages_of(self._rows).astype("<u4").tobytes()
        return SwapOut(wire_ticket(self._inferlet, ticket), self._inferlet, _QUEUE, 0, pages)

    def end(self, result: object) -> tuple[list[int], bool]:
        """The batcher's answer, slots or an error; the pages to be released, and whether that is all there were."""
        slots = np.frombuffer(result, "<u4").astype(np.int64) if isinstance(result, bytes) else self._rows[:0]
        rows, self.is_going, self.ticket = self._rows, False, None
        self.num_out += len(slots)
        pages = self._pages.swap_out(self._empty, np.full(len(self._empty), -1))
        if len(slots) < len(rows) and not isinstance(result, PierayError) and self._can_rebuild(rows):
            pages += self._pages.lose(rows)
            self._unwanted += slots.tolist()
            rows = rows[: len(slots)]
        else:
            pages += self._pages.swap_out(rows[: len(slots)], slots)
        self._unpin()
        return pages, len(slots) == len(rows) and not isinstance(result, PierayError)

    def _can_rebuild(self, rows: I64) -> bool:
        """Whether the frames can be computed again, on the pages that the pool has; then it is noted how."""
        if not self._lineage.is_complete or self._pages.has_failed:
            return False
        lost: list[int] = self._pages.idents(rows).tolist()
        steps = self._lineage.rebuild_plan(lost)
        if not is_repeatable(steps) or len(frames_of(steps)) > self._most_pages:
            return False
        # one of an earlier loss may have been bound since, by a plan that overwrites it, and is lost anew
        self._losses = [loss._replace(frames=loss.frames.difference(lost)) for loss in self._losses]
        self._losses.append(Loss(frozenset(lost), steps))
        self.has_lost = True
        return True

    def rebuild(self, ticket: int, queue: Queue, rows: I64) -> Rebuild | None:
        """The command that computes the lost ones of these frames again, and what they need; to be sent before any that
        uses them.  None: it was asked for before."""
        used = self._pages.lost_idents(rows)
        place = next((n for n, loss in enumerate(self._losses) if not used.isdisjoint(loss.frames)), None)
        if place is None:
            return None
        loss, size = self._losses[place], self._pages.page_size
        wanted = loss.frames & used
        while True:  # a lost frame that another needs is computed whole
            steps = steps_for(loss.steps, wanted, size)
            frames = frames_of(steps)
            if loss.frames.intersection(frames) <= wanted:
                break
            wanted |= loss.frames.intersection(frames)
        prepared = self._pages.stage_rebuild(frames, list(wanted))
        left = loss.frames - wanted
        self._losses[place : place + 1] = [Loss(left, steps_for(loss.steps, left, size))] if left else []
        return Rebuild(ticket, queue, prepared, steps, frames)

    def ahead(self) -> list[Message]:
        """What is to be sent before anything that uses pages bound by now, and what is to be told."""
        messages: list[Message] = []
        if restoring := self._pages.take_restoring():
            slots, pages = np.array(restoring, "<u4").T
            messages.append(SwapIn(wire_ticket(self._inferlet, INTERNAL), self._inferlet, _QUEUE, 0, slots.tobytes(),
                                   pages.tobytes()))  # fmt: skip
        if dropped := [*self._pages.take_dropped(), *self._unwanted]:
            self._unwanted = []
            messages.append(DropSwapped(self._inferlet, np.array(dropped, "<u4").tobytes()))
        return messages

    def stop(self) -> None:
        """The device is lost, or the guest has ended."""
        self.is_going, self.ticket = False, None
        self._unpin()

    def _unpin(self) -> None:
        self._pages.unpin(self._rows)
        self._pages.unpin(self._empty)
        self._rows = self._empty = self._rows[:0]
