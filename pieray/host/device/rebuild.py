"""Computing again what frames held, as the log of their inferlet says (`pieray.pages.lineage`).

Where host memory has no room for pages that are given up, they are dropped, if the log has the steps that made them.
The frames are lost then; the first command that uses one of them has all of them computed before it.  What that reads
may be lost in turn before it is sent: then it is planned anew.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pieray.arrays import I64
from pieray.host.device.commands import INTERNAL, Command, Queue, wire_ticket
from pieray.messages import PRIVATE, CopyTokens, Forward, Message
from pieray.pages.lineage import CopyStep, ForwardStep, Step
from pieray.pages.prepared import Prepared


def is_repeatable(steps: Sequence[Step]) -> bool:
    """Whether the steps give the same again: no adapter that an inferlet has loaded for itself, which may be gone, and
    nothing that was hidden from a plan."""
    return not any(isinstance(step, ForwardStep) and (step.visible or step.adapter >= PRIVATE) for step in steps)


def frames_of(steps: Sequence[Step]) -> list[int]:
    """Identities of all frames that the steps name, each once."""
    found: dict[int, None] = {}
    for step in steps:
        names = [step.src, step.dst] if isinstance(step, CopyStep) else step.frames.tolist()
        found.update(dict.fromkeys(names))
    return list(found)


class Rebuild(Command):
    """Steps, in order.  `prepared` has a page for each of `frames`, in their order; those `given` are read only."""

    writes_behind_copies = True
    __slots__ = ("_frames", "_given", "_steps")

    def __init__(
        self,
        ticket: int,
        queue: Queue,
        prepared: Prepared,
        steps: Sequence[Step],
        frames: Sequence[int],
        given: Collection[int],
    ) -> None:
        super().__init__(ticket, queue, prepared)
        self.is_sought = True
        self._steps = steps
        self._frames = frames
        self._given = given

    @property
    def given(self) -> I64:
        """Frames that it reads."""
        return np.array([row for row, _ in self.prepared.reads], np.int64)

    @property
    def wanted(self) -> I64:
        """Lost frames that it computes."""
        return np.array([row for row, _ in self.prepared.writes], np.int64)

    def messages(self, inferlet: int) -> list[Message]:
        pages = self.prepared.pages
        place = {frame: index for index, frame in enumerate(self._frames)}
        head = wire_ticket(inferlet, INTERNAL), inferlet, self.queue.handle, self.queue.priority
        found: list[Message] = []
        for step in self._steps:
            if isinstance(step, CopyStep):
                src, dst = (int(pages[place[frame]]) for frame in (step.src, step.dst))
                found.append(CopyTokens(*head, [[src, step.src_offset, dst, step.dst_offset, step.count]]))
            else:
                line = pages[[place[frame] for frame in step.frames.tolist()]].astype("<u4").tobytes()
                tokens, positions = bytes(step.tokens), bytes(step.positions)
                embeds = list(step.embeds)
                found.append(Forward(*head, line, step.kv_len, tokens, positions, step.mask, [], step.adapter, embeds))
        # a copy of each page's first token onto itself: it comes behind all of these, and fails if one of them does
        written = pages[[frame not in self._given for frame in self._frames]]
        touched = [[page, 0, page, 0, 1] for page in np.unique(written).tolist()]
        found.append(CopyTokens(wire_ticket(inferlet, self.ticket), *head[1:], touched))
        return found
