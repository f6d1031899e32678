"""Lineage: how the content of an inferlet's pages came to be, as a log from which it can be rebuilt.

The log holds steps in the order in which they were sent: spans of tokens that were run, and copies.  Frames are known
by identities that are never used again (`PageSpace.frame_ids`).  To note a step is to append it; which steps a frame
needs, which nobody needs any more and which are one is worked out when somebody looks: in `rebuild_plan`, and whenever
the log has doubled.  A long generation is one step then: 4 bytes a
token and 8 a page.

A step of a command that then failed describes slots that cannot be read: running it again may fail again, and harms
nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from pieray.arrays import I64
from pieray.errors import Unsupported
from pieray.pages.frames import slot_bits

MEDIA_BYTES = 16
"""Of what says of which row of which image a token is."""
STEP_BYTES = 400
"""What a step takes beside its arrays, nearly."""
LOG_BYTES = 16 << 20
"""Of a log, beside embeddings of images."""
SMALL_BYTES = 256 << 10
"""A log that takes less is left as it is."""
_ALL_SLOTS = (1 << 64) - 1


@dataclass(slots=True, eq=False)
class ForwardStep:
    """Run tokens on top of `kv_len` tokens in `frames`, as the message Forward has it."""

    frames: I64
    kv_len: int
    tokens: bytes | bytearray  # u32
    positions: bytes | bytearray = b""  # u32, or b"": kv_len, kv_len + 1, ...
    mask: bytes = b""  # packed bits [tokens, kv_len + tokens], or b"": causal
    visible: bytes = b""  # packed bits, of as many of the first tokens as it has, which all rows may see; b"": all
    adapter: int = 0
    embeds: tuple[bytes, ...] = ()  # rows of images, as `Forward.embeds` has them
    media: bytes = b""  # what they are of: MEDIA_BYTES a token, zeros of one that is text; b"": text alone

    @property
    def end(self) -> int:
        return self.kv_len + len(self.tokens) // 4

    @property
    def num_bytes(self) -> int:
        arrays = len(self.tokens) + len(self.positions) + len(self.mask) + len(self.visible) + len(self.media)
        return STEP_BYTES + arrays + sum(map(len, self.embeds)) + self.frames.nbytes

    def writes(self, page_size: int) -> list[tuple[int, int]]:
        """Frames and their slots (bits) that it writes."""
        found = []
        for index in range(self.kv_len // page_size, -(-self.end // page_size)):
            start, stop = self.kv_len - index * page_size, self.end - index * page_size
            found.append((int(self.frames[index]), slot_bits(max(start, 0), min(stop, page_size))))
        return found

    def reads(self, page_size: int) -> list[tuple[int, int]]:
        """The same of what it may read."""
        num_full, offset = divmod(self.kv_len, page_size)
        found = [(frame, _ALL_SLOTS) for frame in self.frames[:num_full].tolist()]
        return [*found, (int(self.frames[num_full]), slot_bits(0, offset))] if offset else found

    def is_run_on_by(self, later: ForwardStep) -> bool:
        """Whether the two, one behind the other, are one."""
        return (
            self.end == later.kv_len
            and not (self.mask or later.mask)
            and not (self.embeds or later.embeds)
            and (not self.positions) == (not later.positions)
            and (self.visible, self.adapter) == (later.visible, later.adapter)
            and later.frames.tobytes().startswith(self.frames.tobytes())
        )


@dataclass(frozen=True, slots=True)
class CopyStep:
    """Copy `count` tokens of KV between frames."""

    src: int
    src_offset: int
    dst: int
    dst_offset: int
    count: int

    @property
    def num_bytes(self) -> int:
        return STEP_BYTES

    def writes(self, _page_size: int) -> list[tuple[int, int]]:
        return [(self.dst, slot_bits(self.dst_offset, self.dst_offset + self.count))]

    def reads(self, _page_size: int) -> list[tuple[int, int]]:
        return [(self.src, slot_bits(self.src_offset, self.src_offset + self.count))]


Step: TypeAlias = ForwardStep | CopyStep


class Lineage:
    """One inferlet's log.  Past `max_bytes` it is given up: what cannot be rebuilt must not be dropped.

    `live_frames` gives the identities of the frames that something uses.
    """

    def __init__(self, page_size: int, live_frames: Callable[[], Iterable[int]], max_bytes: int = LOG_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.is_complete = True
        self._page_size = page_size
        self._live_frames = live_frames
        self._log: list[Step] = []
        self._limit = min(SMALL_BYTES, max_bytes)  # of bytes, until the log is looked through

    @property
    def num_steps(self) -> int:
        return len(self._log)

    def add_forward(
        self,
        frames: I64,
        kv_len: int,
        tokens: bytes,
        positions: bytes = b"",
        mask: bytes = b"",
        visible: bytes = b"",
        adapter: int = 0,
        embeds: Sequence[bytes] = (),
        media: bytes = b"",
    ) -> None:
        """Tokens are run: what the message carries, and of what images its embeddings are."""
        if self.is_complete:
            step = ForwardStep(frames, kv_len, tokens, positions, mask, visible, adapter, tuple(embeds), media)
            self._add(step)

    def add_copies(self, copies: Iterable[tuple[int, int, int, int, int]]) -> None:
        """Slots of frames are copied, in that order."""
        if self.is_complete:
            for copy in copies:
                self._add(CopyStep(*copy))

    def give_up(self) -> None:
        """Something was done that the log cannot hold: pages cannot be rebuilt from here on."""
        self.is_complete = False
        self.num_bytes = 0
        self._log.clear()

    def rebuild_plan(self, frames: Iterable[int]) -> Sequence[Step]:
        """Steps, in order, that give every written slot of `frames` its content again, from nothing.

        They may name further frames, dead ones too, and may write to parts of live frames that were overwritten
        since: run them on fresh pages for all frames named, and keep those of `frames`.  Raises Unsupported once the
        log has been given up.
        """
        if not self.is_complete:
            raise Unsupported(
                f"these pages cannot be rebuilt: their log was given up, or has passed {self.max_bytes} bytes"
            )
        return _joined(steps_for(self._log, frames, self._page_size), self._page_size)

    def compact(self) -> None:
        """Keep only what live frames need."""
        self._log = _joined(steps_for(self._log, self._live_frames(), self._page_size), self._page_size)
        self.num_bytes = sum(step.num_bytes for step in self._log)
        self._limit = min(max(2 * self.num_bytes, SMALL_BYTES), self.max_bytes)
        if self.num_bytes > self.max_bytes:
            self.give_up()

    def _add(self, step: Step) -> None:
        self._log.append(step)
        self.num_bytes += step.num_bytes
        if self.num_bytes > self._limit:
            self.compact()


def steps_on(
    steps: Sequence[Step], frames: Iterable[int], given: Iterable[int], page_size: int
) -> tuple[list[Step], frozenset[int]]:
    """What gives `frames` their content on top of `given` ones, which are full and have theirs; and which of those it
    reads.  `steps` give all of them their content."""
    there = frozenset(given).intersection(_written_once(steps, page_size))
    while True:
        cut = [step for step in (_cut(step, there, page_size) for step in steps) if step is not None]
        found = steps_for(cut, frames, page_size, there)
        rewritten = there.intersection(frame for step in found for frame, _ in step.writes(page_size))
        if not rewritten:
            read = (frame for step in found for frame, _ in step.reads(page_size))
            return found, there.intersection(read)
        there -= rewritten


def steps_for(steps: Sequence[Step], frames: Iterable[int], page_size: int, given: Collection[int] = ()) -> list[Step]:
    """Of the steps, those that the content of `frames` needs: backwards, a step is needed if a slot that it writes is
    wanted; then what it reads is wanted before it, but for `given` frames."""
    wanted = defaultdict(int, dict.fromkeys(frames, _ALL_SLOTS))
    found: list[Step] = []
    for step in reversed(steps):
        writes = step.writes(page_size)
        if any(wanted.get(frame, 0) & bits for frame, bits in writes):
            found.append(step)
            for frame, bits in writes:
                wanted[frame] &= ~bits
            for frame, bits in step.reads(page_size):
                if frame not in given:
                    wanted[frame] |= bits
    found.reverse()
    return found


def written_slots(steps: Iterable[Step], page_size: int) -> Mapping[int, int]:
    """Slots (bits) that steps write, by frame; 0 for any other."""
    written: dict[int, int] = defaultdict(int)
    for step in steps:
        for frame, bits in step.writes(page_size):
            written[frame] |= bits
    return written


def _written_once(steps: Iterable[Step], page_size: int) -> set[int]:
    """Frames of which no slot is written twice: whoever reads one reads what it holds in the end."""
    written: dict[int, int] = defaultdict(int)
    again = set()
    for step in steps:
        for frame, bits in step.writes(page_size):
            if written[frame] & bits:
                again.add(frame)
            written[frame] |= bits
    return written.keys() - again


def _cut(step: Step, given: Collection[int], page_size: int) -> Step | None:
    """A step without the first pages that it writes, as far as they are there; None: nothing is left of it."""
    if isinstance(step, CopyStep) or step.mask or step.visible or step.embeds or step.kv_len % page_size:
        return step
    first, last = step.kv_len // page_size, -(-step.end // page_size)
    start = first
    while start < last and int(step.frames[start]) in given:
        start += 1
    skipped = 4 * page_size * (start - first)
    if start == last:
        return None
    return (
        replace(step, kv_len=start * page_size, tokens=step.tokens[skipped:], positions=step.positions[skipped:])
        if skipped
        else step
    )


def _joined(steps: Iterable[Step], page_size: int) -> list[Step]:
    """The same steps, where one that runs another on is joined to it: nothing has touched the frames of the two in
    between, and the slots to be written never were (or an earlier reader would see too much)."""
    found: list[Step] = []
    written: dict[int, int] = defaultdict(int)
    tails: dict[int, dict[int, ForwardStep]] = defaultdict(dict)  # by frame: what may be run on, with it among its own
    for step in steps:
        writes = step.writes(page_size)
        whole = None
        if isinstance(step, ForwardStep) and step.kv_len and not any(written[frame] & bits for frame, bits in writes):
            before = tails[int(step.frames[(step.kv_len - 1) // page_size])]
            whole = next((tail for tail in before.values() if tail.is_run_on_by(step)), None)
        for frame, bits in writes:
            written[frame] |= bits
            for tail in [tail for tail in tails[frame].values() if tail is not whole]:
                for other in tail.frames.tolist():
                    tails[other].pop(id(tail), None)
        if not isinstance(step, ForwardStep):
            found.append(step)
            continue
        if whole is None:
            whole = replace(step, frames=step.frames[:0], tokens=bytearray(), positions=bytearray())
            found.append(whole)
        whole.tokens += step.tokens
        whole.positions += step.positions
        for frame in step.frames[len(whole.frames) :].tolist():
            tails[frame][id(whole)] = whole
        whole.frames = step.frames
    return found
