"""PageIndex: which pages hold known content, and which of these go first when the space is wanted.

Content is named by a hash that is chained over all before it (`pieray.pages.contents`), so pages form chains, which
branch where texts do:

    root --- h0 --- h1 --- h2      one prompt
                \\
                 `--- k1 --- k2    another one that begins alike

A prompt finds the longest chain from the root that is there.  A page without an owner is *idle*: it stays until the
space is wanted.  Least recently used goes first, and of one use the deepest, so that what is left of a chain can
still be found: whoever uses a page has used those before it too.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from pieray.errors import PierayError
from pieray.messages.leases import Place


@dataclass(slots=True)
class _Entry:
    page: int
    before: bytes  # the hash before it, which need not be there
    depth: int
    used_at: int = 0  # uses count up
    is_idle: bool = False


class PageIndex:
    """Pages by hash.  Plain bookkeeping: `PageLedger` tells it which pages come to be idle."""

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._hashes: dict[int, bytes] = {}  # by page
        self._idle: list[tuple[int, int, bytes]] = []  # heap: used at, -depth, hash; outdated entries are skipped
        self._clock = 0
        self.num_idle = 0
        self.changes: dict[bytes, bool] | None = None
        """By hash, what has come (True) or gone since somebody looked last; None: nobody looks."""

    def hashes(self) -> list[bytes]:
        """Of all that is here."""
        return list(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, page: int) -> bool:
        return page in self._hashes

    def is_idle(self, page: int) -> bool:
        """Whether the page is here and has no owner."""
        found = self._hashes.get(page)
        return found is not None and self._entries[found].is_idle

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """The pages of the longest beginning of a chain that is here."""
        pages: list[int] = []
        for found in hashes:
            if (entry := self._entries.get(found)) is None:
                break
            pages.append(entry.page)
        return pages

    def add(self, page: int, place: Place) -> None:
        """A page that has an owner.  What is here already, by page or by hash, stays as it is."""
        if place.name not in self._entries and page not in self._hashes:
            self._entries[place.name] = _Entry(page, place.before, place.depth)
            self._hashes[page] = place.name
            if self.changes is not None:
                self.changes[place.name] = True

    def rest(self, pages: Sequence[int]) -> None:
        """Pages that are here have lost their last owner, all by one use."""
        self._clock += 1
        for page in pages:
            name = self._hashes[page]
            self._entries[name].is_idle = True
            self.num_idle += 1
            self._touch(name, is_new=True)

    def wake(self, page: int) -> None:
        """An idle page has an owner again."""
        self._entries[self._hashes[page]].is_idle = False
        self.num_idle -= 1

    def evict(self) -> int:
        """Forget the idle page that goes first, and return it; there must be one."""
        while True:
            used_at, _, name = heapq.heappop(self._idle)
            entry = self._entries.get(name)
            if entry is not None and entry.is_idle and entry.used_at == used_at:
                self._remove(name)
                return entry.page

    def clear(self) -> list[int]:
        """Forget all; the pages that were idle."""
        pages = [entry.page for entry in self._entries.values() if entry.is_idle]
        if self.changes is not None:
            self.changes.update(dict.fromkeys(self._entries, False))
        self._entries.clear()
        self._hashes.clear()
        self._idle.clear()
        self.num_idle = 0
        return pages

    def check(self) -> None:
        """Raise `internal` unless the books balance: a page has one hash, and every idle one can be evicted."""
        idle = {name for name, entry in self._entries.items() if entry.is_idle}
        queued = {name for used_at, _, name in self._idle if self._is_at(name, used_at)}
        by_page = {entry.page: name for name, entry in self._entries.items()}
        if by_page != self._hashes or len(idle) != self.num_idle or not idle <= queued:
            raise PierayError(
                f"page index does not balance: {len(self._entries)} hashes, {len(by_page)} pages of them, "
                f"{len(self._hashes)} by page; idle {len(idle)} (counted {self.num_idle}), to be evicted {len(queued)}"
            )

    # --- inside --------------------------------------------------------------------------------

    def _is_at(self, name: bytes, used_at: int) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.used_at == used_at

    def _touch(self, name: bytes, *, is_new: bool = False) -> None:
        """A page and those before it are used now; each once in a use, so that a chain costs its length."""
        while (entry := self._entries.get(name)) is not None and (is_new or entry.used_at != self._clock):
            entry.used_at = self._clock
            if entry.is_idle:
                heapq.heappush(self._idle, (self._clock, -entry.depth, name))
            is_new, name = False, entry.before
        if len(self._idle) > 4 * len(self._entries) + 64:
            self._idle = [(e.used_at, -e.depth, name) for name, e in self._entries.items() if e.is_idle]
            heapq.heapify(self._idle)

    def _remove(self, name: bytes) -> None:
        entry = self._entries.pop(name)
        del self._hashes[entry.page]
        self.num_idle -= 1
        if self.changes is not None:
            self.changes[name] = False
