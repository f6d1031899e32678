"""Swapping pages to host memory and back, as commands: they run at the start of a step, a bounded part in each."""

from __future__ import annotations

import numpy as np

from pieray.arrays import I64
from pieray.errors import InvalidRequest
from pieray.messages import SwapIn, SwapOut
from pieray.sched.commands import Slots
from pieray.sched.page_moves import PageMove, PageMover, numbers
from pieray.sched.swap_slots import SwapSlots


class SwapCommand(PageMove):
    """Whole pages, in order, and the slot of each that has one."""

    __slots__ = ("slots", "swap")

    def __init__(self, peer_id: str, message: SwapOut | SwapIn, swap: SwapSlots) -> None:
        super().__init__(peer_id, message)
        self.slots: list[int] = []
        self.swap = swap

    def step_slots(self) -> I64:
        """The slots of the step."""
        return np.array(self.slots[slice(*self.step_range)], np.int64)


class SwapOutCommand(SwapCommand):
    """Pages to slots, which are taken when their part is scheduled; it ends with the first page that finds none.

    It copies what there is and fails for no slot that a failed command was to write: whoever swaps a page knows which
    of its slots are written, and reads no others when it is back.
    """

    __slots__ = ()

    def schedule(self, most: int) -> int:
        first = self.step_range[1]
        wanted = min(most, self.num_parts - first)
        found = self.swap.take(self.lane, wanted)
        self.slots += found
        if len(found) < wanted:
            self.num_parts = len(self.slots)
        return super().schedule(len(found))

    def run(self, runner: PageMover) -> None:
        if len(slots := self.step_slots()):
            runner.swap_out(self.step_pages(), slots)

    def complete(self) -> bytes:
        self.swap.keep(self.lane, self.slots, is_new=True)
        return np.array(self.slots, "<u4").tobytes()

    def undo(self) -> None:
        self.swap.free(self.lane, self.slots)

    def written_pages(self) -> list[int]:
        return []

    def written_slots(self, page_size: int) -> Slots:  # noqa: ARG002 - none, whatever the size
        return {}


class SwapInCommand(SwapCommand):
    """Slots of the inferlet to pages; the slots are free when all are read."""

    __slots__ = ()

    def __init__(self, peer_id: str, message: SwapIn, swap: SwapSlots) -> None:
        super().__init__(peer_id, message, swap)
        slots = numbers(message.slots)
        if len(slots) != len(self.pages) or len(set(self.pages)) != len(self.pages):
            raise InvalidRequest(
                f"as many pages as slots are swapped in, each once; given {len(slots)} slots and "
                f"{len(set(self.pages))} pages ({len(self.pages)} named)"
            )
        swap.borrow(self.lane, slots)
        self.slots = slots

    def run(self, runner: PageMover) -> None:
        if len(slots := self.step_slots()):
            runner.swap_in(slots, self.step_pages())

    def complete(self) -> None:
        self.swap.free(self.lane, self.slots, is_read=True)

    def undo(self) -> None:
        self.swap.keep(self.lane, self.slots)

    def written_pages(self) -> list[int]:
        return self.pages

    def written_slots(self, page_size: int) -> Slots:
        return dict.fromkeys(self.pages, (1 << page_size) - 1)
