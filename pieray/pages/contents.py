"""What full pages hold, by a hash: equal hashes, equal KV, whichever inferlet of a tenant has computed it.

The hash of a page is chained over all that its KV depends on: the pages before it, its tokens, their positions and
the adapter; the first follows a root that names the tenant, the model and the size of pages.  Only plain pages have
one, those of a text that attends all of what is before it, and not through an adapter of the inferlet's own.  Of a row
of an image it is chained over what the image is, not over a token.  It is computed from the log
(`pieray.pages.lineage`) when somebody looks: nothing is done for a token.

    page        | 7        | 0        | 9        |
    hash   root > h0 ----- > h1 ----- > -             page 9 is not full, or masked: here the chain ends
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from pieray.messages import PRIVATE
from pieray.messages.leases import HASH_BYTES, Place
from pieray.pages.lineage import MEDIA_BYTES, CopyStep, ForwardStep, Step


def root_of(*names: str | int) -> bytes:
    """What the first pages of all chains follow whose content may be shared."""
    return _hash(repr(names).encode())


def chain(
    before: bytes, tokens: bytes, positions: bytes, page_size: int, adapter: int = 0, media: bytes = b""
) -> list[bytes]:
    """Hashes of the full pages of `tokens` at `positions` (u32 each), the first of them behind the page `before`;
    `media` as `ForwardStep` has it."""
    size = 4 * page_size
    found = []
    for start in range(0, len(tokens) - size + 1, size):
        seen = media[start * MEDIA_BYTES // 4 : (start + size) * MEDIA_BYTES // 4]
        before = _page_hash(before, tokens[start : start + size], positions[start : start + size], adapter, seen)
        found.append(before)
    return found


def positions_of(start: int, num_tokens: int) -> bytes:
    """Those of tokens in their places (u32)."""
    return np.arange(start, start + num_tokens, dtype="<u4").tobytes()


@dataclass(slots=True)
class _Record:
    """The first tokens of a frame, as far as they are plain."""

    before: bytes  # the hash of the page before it, when they were written
    depth: int
    adapter: int
    tokens: bytes = b""  # u32
    positions: bytes = b""  # u32
    media: bytes = b""  # MEDIA_BYTES of each token

    @property
    def count(self) -> int:
        return len(self.tokens) // 4

    def may_follow(self, before: bytes, adapter: int, offset: int) -> bool:
        """Whether tokens run behind that page, and behind `offset` tokens of this one, run this one on."""
        return self.count >= offset and (self.before, self.adapter) == (before, adapter)

    def add(
        self, offset: int, tokens: bytes | bytearray, positions: bytes | bytearray, media: bytes | bytearray = b""
    ) -> None:
        """Write to the slots from `offset` on: what was there or behind counts no more."""
        self.tokens = self.tokens[: 4 * offset] + bytes(tokens)
        self.positions = self.positions[: 4 * offset] + bytes(positions)
        before = self.media[: MEDIA_BYTES * offset]
        if media:
            self.media = before.ljust(MEDIA_BYTES * offset, b"\0") + bytes(media)
        else:
            self.media = before

    def name(self) -> bytes:
        return _page_hash(self.before, self.tokens, self.positions, self.adapter, self.media)


class Contents:
    """What frames hold, as steps of a log have written them.  They are known by their identities."""

    def __init__(self, steps: Iterable[Step], root: bytes, page_size: int) -> None:
        self._root = root
        self._size = page_size
        self._records: dict[int, _Record] = {}
        for step in steps:
            if isinstance(step, CopyStep):
                self._copied(step)
            else:
                self._ran(step)

    def chain_of(self, frames: Sequence[int]) -> list[bytes]:
        """Hashes of frames, one behind the other from the beginning of a text on; they end before the first that is not
        plain, not full, or was computed on other pages than those before it."""
        found: list[bytes] = []
        before = self._root
        for frame in frames:
            record = self._records.get(frame)
            if record is None or record.count != self._size or record.before != before:
                break
            before = record.name()
            found.append(before)
        return found

    def place_of(self, frame: int) -> Place | None:
        """Of a frame that is full and plain."""
        record = self._records.get(frame)
        if record is None or record.count != self._size:
            return None
        return Place(record.name(), record.before, record.depth)

    def _ran(self, step: ForwardStep) -> None:
        size, records = self._size, self._records
        first, offset = divmod(step.kv_len, size)
        frames = step.frames.tolist()
        before = self.chain_of(frames[:first])
        is_plain = not step.mask and not step.visible and step.adapter < PRIVATE and len(before) == first
        name = before[-1] if before else self._root
        positions = step.positions or positions_of(step.kv_len, len(step.tokens) // 4)
        start = 0
        for index in range(first, -(-step.end // size)):
            stop = min((index + 1) * size, step.end) - step.kv_len
            record = records.pop(frames[index], None) if offset else _Record(name, index, step.adapter)
            is_plain = is_plain and record is not None and record.may_follow(name, step.adapter, offset)
            if is_plain and record is not None:
                records[frames[index]] = record
                seen = step.media[MEDIA_BYTES * start : MEDIA_BYTES * stop]
                record.add(offset, step.tokens[4 * start : 4 * stop], positions[4 * start : 4 * stop], seen)
                if record.count == size:
                    name = record.name()
            else:
                records.pop(frames[index], None)
            start, offset = stop, 0

    def _copied(self, step: CopyStep) -> None:
        """The first tokens of a page are what they are in a copy of it, too; what else is copied is nothing plain."""
        src, dst = self._records.get(step.src), self._records.get(step.dst)
        if step.src_offset == step.dst_offset == 0 and src is not None and src.count >= step.count and src is not dst:
            size = 4 * step.count
            tokens, positions = src.tokens[:size], src.positions[:size]
            media = src.media[: MEDIA_BYTES * step.count]
            self._records[step.dst] = _Record(src.before, src.depth, src.adapter, tokens, positions, media)
        elif dst is not None:
            dst.add(step.dst_offset, b"", b"")


def _page_hash(before: bytes, tokens: bytes, positions: bytes, adapter: int, media: bytes) -> bytes:
    seen = media.rstrip(b"\0")  # one page, one name, whether it says of each token that it is text or does not
    return _hash(before, adapter.to_bytes(8, "little"), tokens, positions, seen)


def _hash(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=HASH_BYTES).digest()
