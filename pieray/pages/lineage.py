"""Lineage: how the content of an inferlet's pages came to be, as a compact log from which it can be rebuilt.

The log holds records in program order: forwards (frames, kv_len, tokens, positions, mask) and copies.
Frames are known by identities that are never used again (`PageSpace.frame_ids`).  A forward that runs a
context on is merged into the record before it, so that a long generation is one record: 4 bytes per
token (8 with explicit positions) and 8 per page, 4.5 bytes per token with pages of 16.  A record that no
live slot depends on any more is dropped.

A record made for a command that then failed describes slots that cannot be read: running it again may
fail again, and harms nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pieray.errors import Unsupported
from pieray.pages.frames import slot_bits
from pieray.pages.handles import Prepared

U32 = npt.NDArray[np.uint32]
RECORD_BYTES = 600
"""What a record takes beside its arrays, nearly."""
_ALL_SLOTS = -1


@dataclass(frozen=True, slots=True)
class ForwardStep:
    """Run tokens (u32 bytes) on top of `kv_len` tokens in `frames`, as the message Forward has it."""

    frames: list[int]
    kv_len: int
    tokens: bytes
    positions: bytes
    mask: bytes


@dataclass(frozen=True, slots=True)
class CopyStep:
    """Copy `count` tokens of KV between frames."""

    src: int
    src_offset: int
    dst: int
    dst_offset: int
    count: int


Step: TypeAlias = ForwardStep | CopyStep


class _Record:
    """A forward; `copy` is set for a copy.  Kept while it owns slots of live frames or `num_uses` others need it."""

    __slots__ = ("copy", "frames", "is_open", "kv_len", "mask", "needs", "num_uses", "positions", "seq", "tokens")

    def __init__(self, seq: int, copy: CopyStep | None = None) -> None:
        self.seq = seq
        self.copy = copy
        self.needs: dict[_Record, None] = {}  # records that wrote what this one reads
        self.num_uses = 0  # records that need this one, and frames of which it owns slots
        self.is_open = False  # nothing else has written to its frames since: it may be run on
        self.frames = b""  # i64
        self.kv_len = 0
        self.tokens = array("I")
        self.positions: array[int] | None = None
        self.mask = b""

    @property
    def end(self) -> int:
        return self.kv_len + len(self.tokens)

    @property
    def nbytes(self) -> int:
        arrays = 4 * len(self.tokens) + 4 * len(self.positions or ()) + len(self.mask) + len(self.frames)
        return RECORD_BYTES + arrays

    def frame_ids(self) -> list[int]:
        ids: list[int] = np.frombuffer(self.frames, np.int64).tolist()
        return ids

    def step(self) -> Step:
        if self.copy is not None:
            return self.copy
        positions = b"" if self.positions is None else self.positions.tobytes()
        return ForwardStep(self.frame_ids(), self.kv_len, self.tokens.tobytes(), positions, self.mask)


class Lineage:
    """One inferlet's log.  Past `max_bytes` it is given up: what cannot be rebuilt must not be dropped."""

    def __init__(self, max_bytes: int = 16 << 20) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.is_complete = True
        self._next_seq = 0
        self._records: dict[int, _Record] = {}
        self._owners: dict[int, list[tuple[int, _Record]]] = {}  # frame: (slots, who wrote them last), disjoint
        self._listed: dict[int, dict[_Record, None]] = {}  # frame: open records with it among their frames

    @property
    def num_records(self) -> int:
        return len(self._records)

    # --- recording -----------------------------------------------------------------------------

    def record_forward(self, prepared: Prepared, kv_len: int, tokens: U32, positions: U32, mask: bytes) -> None:
        """A forward was staged: `prepared`, and what its message will carry."""
        if not self.is_complete:
            return
        for copy in prepared.frame_copies:
            self._add_copy(CopyStep(*copy))
        frames, num_written = prepared.frames, len(prepared.writes)
        written = [
            (frame, bits)
            for frame, (_, bits) in zip(frames[len(frames) - num_written :].tolist(), prepared.writes, strict=True)
        ]
        reads = prepared.reads[0][1] if prepared.reads else 0
        record = None if mask or not kv_len else self._to_run_on(prepared, kv_len, positions, written)
        if record is None:
            record = self._new_forward(kv_len, positions, mask)
            self._need(record, frames[: prepared.num_full].tolist(), _ALL_SLOTS)
            if reads:
                self._need(record, [int(frames[prepared.num_full])], reads)
        else:
            self.num_bytes -= record.nbytes
        record.tokens.frombytes(tokens.tobytes())
        if record.positions is not None:
            record.positions.frombytes(positions.tobytes())
        self._list(record, frames)
        self.num_bytes += record.nbytes
        for frame, bits in written:
            self._write(record, frame, bits)
        self._check_limit()

    def record_copy(self, prepared: Prepared) -> None:
        """A copy was staged."""
        if self.is_complete:
            for copy in prepared.frame_copies:
                self._add_copy(CopyStep(*copy))
            self._check_limit()

    def give_up(self) -> None:
        """Something was staged that the log cannot hold: pages cannot be rebuilt from here on."""
        self.is_complete = False
        self.num_bytes = 0
        self._records.clear()
        self._owners.clear()
        self._listed.clear()

    def forget(self, frame: int) -> None:
        """Nothing uses the frame any more."""
        self._close_all(frame)
        owners = [record for _, record in self._owners.pop(frame, ())]
        for record in owners:
            record.num_uses -= 1
        self._collect(owners)

    # --- rebuilding ----------------------------------------------------------------------------

    def rebuild_plan(self, frames: Iterable[int]) -> list[Step]:
        """Steps, in order, that give every written slot of `frames` its content again, from nothing.

        They may name further frames, dead ones too, and may write to parts of live frames that were overwritten
        since: run them on fresh pages for all frames named, and keep those of `frames`.  Raises Unsupported once the
        log has been given up.
        """
        if not self.is_complete:
            raise Unsupported(
                f"these pages cannot be rebuilt: their log was given up, or has passed {self.max_bytes} bytes"
            )
        todo = [record for frame in frames for _, record in self._owners.get(frame, ())]
        needed: dict[int, _Record] = {}
        while todo:
            record = todo.pop()
            if record.seq not in needed:
                needed[record.seq] = record
                todo += record.needs
        return [needed[seq].step() for seq in sorted(needed)]

    # --- inside --------------------------------------------------------------------------------

    def _to_run_on(
        self, prepared: Prepared, kv_len: int, positions: U32, written: list[tuple[int, int]]
    ) -> _Record | None:
        """The record that this forward runs on: it wrote slot kv_len - 1, nothing has touched its frames since, its
        frames come first, and the slots to be written never were (or an earlier reader would see too much)."""
        last = int(prepared.frames[prepared.num_full if prepared.reads else prepared.num_full - 1])
        owners = self._owners.get(last)
        record = owners[-1][1] if owners else None
        is_next = (
            record is not None
            and record.is_open
            and record.end == kv_len
            and (record.positions is None) == (len(positions) == 0)
            and prepared.frames.tobytes().startswith(record.frames)
        )
        is_fresh = not any(owned & bits for frame, bits in written for owned, _ in self._owners.get(frame, ()))
        return record if is_next and is_fresh else None

    def _new_forward(self, kv_len: int, positions: U32, mask: bytes) -> _Record:
        record = self._new()
        record.kv_len, record.mask = kv_len, mask
        record.is_open = not mask
        if len(positions):
            record.positions = array("I")
        return record

    def _add_copy(self, copy: CopyStep) -> None:
        record = self._new(copy)
        self.num_bytes += record.nbytes
        self._need(record, [copy.src], slot_bits(copy.src_offset, copy.src_offset + copy.count))
        self._write(record, copy.dst, slot_bits(copy.dst_offset, copy.dst_offset + copy.count))

    def _new(self, copy: CopyStep | None = None) -> _Record:
        record = self._records[self._next_seq] = _Record(self._next_seq, copy)
        self._next_seq += 1
        return record

    def _need(self, record: _Record, frames: list[int], bits: int) -> None:
        """The record reads those slots: it needs who wrote them."""
        for frame in frames:
            for owned, owner in self._owners.get(frame, ()):
                if owned & bits and owner not in record.needs and owner is not record:
                    record.needs[owner] = None
                    owner.num_uses += 1

    def _write(self, record: _Record, frame: int, bits: int) -> None:
        """The record is the last to write those slots."""
        self._close_all(frame, but=record)
        kept, lost, mine, is_new = [], [], bits, True
        for owned, owner in self._owners.get(frame, ()):
            if owner is record:
                mine, is_new = mine | owned, False
            elif left := owned & ~bits:
                kept.append((left, owner))
            else:
                lost.append(owner)
        record.num_uses += is_new
        self._owners[frame] = [*kept, (mine, record)]
        for owner in lost:
            owner.num_uses -= 1
        self._collect(lost)

    def _list(self, record: _Record, frames: npt.NDArray[np.int64]) -> None:
        """Note the frames of an open record, those that it had excepted."""
        known = len(record.frames) // 8
        record.frames = frames.tobytes() if len(frames) != known else record.frames
        if record.is_open:
            for frame in frames[known:].tolist():
                self._listed.setdefault(frame, {})[record] = None

    def _close_all(self, frame: int, but: _Record | None = None) -> None:
        """The frame changes: records that list it cannot be run on."""
        for record in [r for r in self._listed.get(frame, ()) if r is not but]:
            self._close(record)

    def _close(self, record: _Record) -> None:
        record.is_open = False
        for frame in record.frame_ids():
            listed = self._listed.get(frame)
            if listed is not None:
                listed.pop(record, None)
                if not listed:
                    del self._listed[frame]

    def _collect(self, records: Iterable[_Record]) -> None:
        """Drop those of the records, and of what they need, that nothing needs any more."""
        todo = list(records)
        while todo:
            record = todo.pop()
            if record.num_uses == 0 and self._records.pop(record.seq, None) is not None:
                self.num_bytes -= record.nbytes
                if record.is_open:
                    self._close(record)
                for needed in record.needs:
                    needed.num_uses -= 1
                    todo.append(needed)

    def _check_limit(self) -> None:
        if self.num_bytes > self.max_bytes:
            self.give_up()
