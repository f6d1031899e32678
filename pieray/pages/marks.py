"""Marks on handles: page slots that passes do not see, and page slots that count as not written."""

from __future__ import annotations

import numpy as np

from pieray.arrays import U64, Intp


class Marks:
    """Two sets of page slots (the bits of a u64) per handle, by the handle's slot in its table; forks inherit both.

    `hidden`: what `kv.mask` hides.  `cut`: what `kv.truncate` took away and nothing has written through the handle
    since; other handles of the same frame, and commands staged before, still see it.
    """

    def __init__(self) -> None:
        self.is_used = False  # whether a mark was ever made: until then nothing here costs anything
        self._hidden: U64 = np.zeros(16, np.uint64)
        self._cut: U64 = np.zeros(16, np.uint64)

    def hidden(self, slots: Intp) -> U64:
        self._reach(slots)
        return self._hidden.take(slots)

    def cut(self, slots: Intp) -> U64:
        self._reach(slots)
        return self._cut.take(slots)

    def hide(self, slots: Intp, bits: U64, *, is_visible: bool) -> None:
        """Hide those page slots of the handles, or show them again."""
        self.is_used = True
        self._reach(slots)
        if is_visible:
            self._hidden[slots] &= ~bits
        else:
            self._hidden[slots] |= bits

    def cut_off(self, slots: Intp, bits: U64) -> None:
        """Those page slots of the handles, which are distinct, count as not written."""
        self.is_used = True
        self._reach(slots)
        self._cut[slots] |= bits

    def written(self, slots: Intp, bits: U64) -> None:
        """Those page slots are written through the handles, which are distinct."""
        if self.is_used:
            self._reach(slots)
            self._cut[slots] &= ~bits

    def inherit(self, old: Intp, new: Intp) -> None:
        """The handles at `new` are forks of those at `old`."""
        if self.is_used:
            hidden, cut = self.hidden(old), self.cut(old)
            self._reach(new)
            self._hidden[new], self._cut[new] = hidden, cut

    def forget(self, slots: Intp) -> None:
        """The handles are closed."""
        if self.is_used:
            self._reach(slots)
            self._hidden[slots] = self._cut[slots] = 0

    def _reach(self, slots: Intp) -> None:
        most = int(slots.max(initial=-1))
        if most >= len(self._hidden):
            more = np.zeros(max(most + 1 - len(self._hidden), len(self._hidden)), np.uint64)
            self._hidden = np.concatenate((self._hidden, more))
            self._cut = np.concatenate((self._cut, more))
