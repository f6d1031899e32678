"""Verification of drafts (Leviathan et al. 2023; trees: Miao et al. 2024): one pass over tokens and their drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pieray.arrays import I64, U8, U32
from pieray.errors import InvalidRequest, PierayError
from pieray.messages import Forward, Output, Sample, Verify
from pieray.sched.commands import ForwardCommand


class VerifyCommand(ForwardCommand):
    """A forward over tokens and drafts.  Each draft attends to its ancestors alone, at the position that it would have.

    Behind the last token, and behind each draft, the next token is drawn as plain decoding would draw it there.
    """

    __slots__ = ("num_given", "parents", "sampled", "visible")

    def __init__(self, peer_id: str, message: Verify, page_size: int) -> None:
        tokens, drafts = np.frombuffer(message.tokens, "<u4"), np.frombuffer(message.drafts, "<u4")
        num_given = self.num_given = len(tokens)
        if not num_given or not 0 <= message.kv_len <= len(message.pages) * page_size:
            raise InvalidRequest(
                f"kv_len {message.kv_len} is at least 0, {num_given} tokens at least 1, and both fit "
                f"in {len(message.pages) // 4} pages of {page_size}"
            )
        self.parents = _checked_parents(message.parents, len(drafts))
        self.visible = _checked_visible(message.visible, message.kv_len)
        self.sampled: dict[int, int] = {}  # by row: the token drawn behind it
        depths = np.zeros(len(drafts) + 1, np.uint32)
        for draft, parent in enumerate(self.parents.tolist()):
            depths[draft + 1] = depths[parent] + 1
        behind = np.uint32(message.kv_len + num_given - 1) + depths[1:]
        given = np.arange(message.kv_len, message.kv_len + num_given, dtype=np.uint32)
        rows = range(num_given - 1, num_given + len(drafts))
        outputs: list[Output] = [Sample(row, message.sampler, message.ticket) for row in rows]
        super().__init__(
            peer_id,
            Forward(
                message.ticket,
                message.inferlet,
                message.queue,
                message.priority,
                message.pages,
                message.kv_len,
                message.tokens + message.drafts,
                np.concatenate((given, behind)).astype("<u4").tobytes(),
                b"",
                outputs,
                message.adapter,
            ),
            page_size,
        )
        self.counters = self.positions

    @property
    def is_tree(self) -> bool:
        """Whether two drafts follow the same."""
        return not np.array_equal(self.parents, np.arange(len(self.parents)))

    @property
    def is_masked(self) -> bool:
        return self.is_tree or self.visible is not None

    def tickets(self) -> list[int]:
        return [self.ticket]

    def mask_between(self, start: int, stop: int) -> bytes | None:
        is_flat = not self.is_tree or stop <= self.num_given
        if is_flat and self.visible is None:
            return None
        visible = np.ones((stop - start, self.kv_len + stop), np.uint8)
        if self.visible is not None:
            visible[:, : self.kv_len] = self.visible
        if is_flat:
            return np.packbits(visible, bitorder="little").tobytes()
        first, behind = max(start, self.num_given), self.kv_len + self.num_given
        visible[first - start :, behind:] = self._ancestors()[
            first - self.num_given : stop - self.num_given, : stop - self.num_given
        ]
        return np.packbits(visible, bitorder="little").tobytes()

    def _ancestors(self) -> U8:
        """Which drafts each draft attends to, itself included."""
        lines = np.zeros((len(self.parents) + 1, len(self.parents)), np.uint8)
        for draft, parent in enumerate(self.parents.tolist()):
            lines[draft + 1] = lines[parent]
            lines[draft + 1, draft] = 1
        return lines[1:]

    def take(self, outputs: Sequence[Output], values: Sequence[Any]) -> PierayError | None:
        """Note the tokens drawn in a step; the error of a row for which there is none."""
        for output, value in zip(outputs, values, strict=True):
            if isinstance(value, PierayError):
                return value
            self.sampled[output.row] = value
        return None

    def outcome(self, page_size: int) -> tuple[U32, list[tuple[int, int, int, int, int]]]:
        """The sampled tokens, accepted drafts and one more, and the copies that bring their KV into a row."""
        row = self.num_given - 1
        sampled, path = [self.sampled[row]], []
        while (child := self._child(row, sampled[-1])) is not None:
            row = child
            path.append(row)
            sampled.append(self.sampled[row])
        moves = [(row, self.num_given + place) for place, row in enumerate(path) if row != self.num_given + place]
        return np.array(sampled, "<u4"), [
            (*self._slot(src, page_size), *self._slot(dst, page_size), 1) for src, dst in moves
        ]

    def _child(self, row: int, token: int) -> int | None:
        """The first draft behind `row` that is `token`."""
        is_child = (self.parents == row - (self.num_given - 1)) & (self.tokens[self.num_given :] == token)
        found = np.flatnonzero(is_child)
        return self.num_given + int(found[0]) if len(found) else None

    def _slot(self, row: int, page_size: int) -> tuple[int, int]:
        index, offset = divmod(self.kv_len + row, page_size)
        return int(self.pages[index]), offset


def _checked_visible(packed: bytes, kv_len: int) -> U8 | None:
    if not packed:
        return None
    if len(packed) != -(-kv_len // 8):
        raise InvalidRequest(f"visible is {kv_len} bits; given {len(packed)} bytes")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=kv_len, bitorder="little")


def _checked_parents(packed: bytes, num_drafts: int) -> I64:
    if not packed:
        return np.arange(num_drafts)
    parents = np.frombuffer(packed, "<u4").astype(np.int64)
    if len(parents) != num_drafts or (parents > np.arange(num_drafts)).any():
        raise InvalidRequest(f"parents: one per draft ({num_drafts}), 0 or 1 + an earlier one; given {parents[:8]}")
    return parents
