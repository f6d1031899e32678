"""Moving whole pages, as commands: they run at the start of a step, a bounded part in each.

Swapping (`pieray.sched.swap`) keeps what pages hold on the host of the same batcher; here it leaves for another one,
of the same model, or comes from there.
"""

from __future__ import annotations

import zlib
from typing import Any, ClassVar, Protocol

import numpy as np

from pieray.arrays import I64, U32
from pieray.errors import InvalidRequest
from pieray.messages import ReadPages, SwapIn, SwapOut, WritePages
from pieray.sched.commands import MoveCommand, Slots
from pieray.sched.costs import Kind


class PageMover(Protocol):
    """What moves pages: `pieray.models.runner.ModelRunner`.  Raises InvalidRequest for a page outside of the pool, and
    nothing has moved then; DeviceLost."""

    def swap_out(self, pages: I64, slots: I64) -> None: ...
    def swap_in(self, slots: I64, pages: I64) -> None: ...

    def read_pages(self, pages: I64) -> bytes:
        """What they hold, one behind the other."""

    def write_pages(self, pages: I64, data: bytes) -> None:
        """The other way; InvalidRequest for data of another size, too."""


class PageMove(MoveCommand):
    """Whole pages, in order."""

    __slots__ = ("pages",)
    cost: ClassVar[Kind] = Kind.SWAPS

    def __init__(self, peer_id: str, message: SwapOut | SwapIn | ReadPages | WritePages) -> None:
        self.pages = numbers(message.pages)
        super().__init__(peer_id, message, len(self.pages))

    def run(self, runner: PageMover) -> None:
        """Move the pages of the step."""
        raise NotImplementedError

    def complete(self) -> Any:
        """All have been moved: the value of the answer."""
        raise NotImplementedError

    def undo(self) -> None:
        """It has failed: all is as if it had not been there, but for what pages hold that it was to write."""

    def used_pages(self) -> list[int]:
        return self.pages

    def read_slots(self, page_size: int) -> Slots:  # noqa: ARG002 - none, whatever the size
        return {}

    def step_pages(self) -> I64:
        """The pages of the step."""
        return np.array(self.pages[slice(*self.step_range)], np.int64)


class ReadPagesCommand(PageMove):
    """Pages that nothing in flight writes to, those of an export: the value is what they hold, and its checksum."""

    __slots__ = ("_parts",)

    def __init__(self, peer_id: str, message: ReadPages) -> None:
        super().__init__(peer_id, message)
        self._parts: list[bytes] = []

    def run(self, runner: PageMover) -> None:
        self._parts.append(runner.read_pages(self.step_pages()))

    def complete(self) -> list[Any]:
        data = b"".join(self._parts)
        return [data, zlib.crc32(data)]

    def written_pages(self) -> list[int]:
        return []

    def written_slots(self, page_size: int) -> Slots:  # noqa: ARG002 - none, whatever the size
        return {}


class WritePagesCommand(PageMove):
    """Pages of the inferlet's own, and what ReadPages has given."""

    __slots__ = ("_data", "_page_nbytes")

    def __init__(self, peer_id: str, message: WritePages) -> None:
        super().__init__(peer_id, message)
        if not self.pages or len(set(self.pages)) != len(self.pages) or len(message.data) % len(self.pages):
            raise InvalidRequest(
                f"pages are written whole, each once; given {len(message.data)} bytes for {len(self.pages)} pages, "
                f"{len(set(self.pages))} of them distinct"
            )
        if (found := zlib.crc32(message.data)) != message.checksum:
            raise InvalidRequest(f"what {len(self.pages)} pages held has changed on its way: its checksum is {found}")
        self._data = message.data
        self._page_nbytes = len(message.data) // len(self.pages)

    def run(self, runner: PageMover) -> None:
        first, last = (self._page_nbytes * place for place in self.step_range)
        runner.write_pages(self.step_pages(), self._data[first:last])

    def complete(self) -> None:
        return None

    def written_pages(self) -> list[int]:
        return self.pages

    def written_slots(self, page_size: int) -> Slots:
        return dict.fromkeys(self.pages, (1 << page_size) - 1)


def numbers(packed: bytes) -> list[int]:
    """From u32."""
    column: U32 = np.frombuffer(packed, "<u4")
    found: list[int] = column.tolist()
    return found
