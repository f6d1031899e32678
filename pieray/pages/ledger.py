"""Who holds which KV page: the plain heart of the ResourceManager.

Pages are numbered `[0, total)`.  A page is *free*, *leased* (a live holder has it) or *quarantined*
(only holders of dead peers have it, and the batcher may still be writing to it).  After every
operation, `free + leased + quarantined == total`.

Free pages are a stack: the lowest ids go first, and pages that come back are the next to be given,
in the order in which they were released.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pieray.errors import InvalidRequest, OutOfPages, PeerLost, PierayError, QuotaExceeded


class Holder(NamedTuple):
    """One inferlet of one peer: what leases are kept by."""

    peer_id: str
    inferlet: int


class PageLedger:
    """Leases, reference counts and quarantine of `total` pages; every operation is O(pages named)."""

    def __init__(self, total: int, max_pages_per_holder: int | None = None) -> None:
        if total < 1:
            raise InvalidRequest(f"a page pool has at least 1 page; given {total}")
        self.total = total
        self.max_pages_per_holder = total if max_pages_per_holder is None else max_pages_per_holder
        self._free = list(range(total - 1, -1, -1))
        self._refs = [0] * total
        self._dead_refs = [0] * total  # of those, how many are holders of dead peers
        self._held: dict[Holder, dict[int, None]] = {}
        self._peers: dict[str, dict[Holder, None]] = {}
        self._dead: set[str] = set()  # peers whose pages wait for their fence
        self._fenced_early: set[str] = set()
        self._num_leased = 0
        self._num_quarantined = 0

    # --- what is where -------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_leased(self) -> int:
        return self._num_leased

    @property
    def num_quarantined(self) -> int:
        return self._num_quarantined

    def pages_of(self, holder: Holder) -> list[int]:
        """Pages of the holder, oldest lease first."""
        return list(self._held.get(holder, ()))

    def num_pages_of(self, holder: Holder) -> int:
        return len(self._held.get(holder, ()))

    # --- leasing -------------------------------------------------------------------------------

    def admit(self, holder: Holder, count: int, num_waiting: int = 0) -> None:
        """Check that `count` pages could ever be leased to the holder, who already waits for `num_waiting`.

        Raises InvalidRequest (count < 1), OutOfPages (more than the pool has), QuotaExceeded (more than a
        holder may have) and PeerLost (the peer is dead).
        """
        if count < 1:
            raise InvalidRequest(f"a lease is of at least 1 page; given {count}")
        if count > self.total:
            raise OutOfPages(f"{count} pages asked for; the pool has {self.total} in all ({self.num_free} free)")
        self._check_alive(holder.peer_id)
        held = self.num_pages_of(holder)
        if held + num_waiting + count > self.max_pages_per_holder:
            raise QuotaExceeded(
                f"max_pages_per_holder is {self.max_pages_per_holder}; inferlet {holder.inferlet} of "
                f"{holder.peer_id} holds {held}, waits for {num_waiting} and asked for {count} more"
            )

    def lease(self, holder: Holder, count: int) -> list[int] | None:
        """`count` free pages, now the holder's; None (nothing changed) while fewer are free.  Raises as `admit`."""
        self.admit(holder, count)
        return self.take(holder, count)

    def take(self, holder: Holder, count: int) -> list[int] | None:
        """As `lease`, for a request that `admit` has let pass before."""
        if count > len(self._free):
            return None
        pages = self._free[: -count - 1 : -1]
        del self._free[-count:]
        self._fenced_early.discard(holder.peer_id)
        self._holding(holder).update(dict.fromkeys(pages))
        for page in pages:
            self._refs[page] = 1
        self._num_leased += count
        return pages

    def share(self, holder: Holder, pages: Sequence[int]) -> None:
        """Make the holder one more holder of leased pages.

        Raises InvalidRequest naming pages that are not leased or that the holder has already, QuotaExceeded
        and PeerLost as `admit`; then nothing has changed.
        """
        held = self._held.get(holder, {})
        wrong = [p for p in pages if not self._is_leased(p) or p in held]
        if wrong or len(set(pages)) != len(pages):
            raise InvalidRequest(f"pages {wrong or list(pages)} are not leased by another holder, or are named twice")
        if pages:
            self.admit(holder, len(pages))
            self._holding(holder).update(dict.fromkeys(pages))
            for page in pages:
                self._refs[page] += 1

    # --- giving back ---------------------------------------------------------------------------

    def release(self, holder: Holder, pages: Sequence[int]) -> int:
        """Give pages back; returns how many came free.

        Raises InvalidRequest naming the pages that the holder does not hold, or names twice, and PeerLost for
        a dead peer, whose pages only its fence frees; then nothing has changed.
        """
        self._check_alive(holder.peer_id)
        held = self._held.get(holder, {})
        missing = [p for p in pages if p not in held]
        if missing or len(set(pages)) != len(pages):
            raise InvalidRequest(
                f"pages {missing or list(pages)} are not held by inferlet {holder.inferlet} of {holder.peer_id}, "
                f"or are named twice"
            )
        for page in pages:
            del held[page]
        if pages and not held:
            self._forget(holder)
        return self._drop_refs(pages)

    def close(self, holder: Holder) -> int:
        """All pages of the holder come back; returns how many came free.  A dead peer's wait for its fence: 0."""
        if holder.peer_id in self._dead or holder not in self._held:
            return 0
        return self.release(holder, list(self._held[holder]))

    # --- death of peers ------------------------------------------------------------------------

    def drop_peer(self, peer_id: str, *, fenced: bool) -> int:
        """The peer is dead: its pages are quarantined until its fence; returns how many came free.

        `fenced`: the batcher is known not to touch its pages (the peer never talked to the batcher, or the
        batcher is gone too), so that they come free at once.  A second notice changes nothing.
        """
        if peer_id in self._fenced_early:
            self._fenced_early.remove(peer_id)
            fenced = True
        if peer_id not in self._peers:
            return 0
        if peer_id not in self._dead:
            self._dead.add(peer_id)
            for holder in self._peers[peer_id]:
                self._quarantine(self._held[holder])
        return self.fence(peer_id) if fenced else 0

    def fence(self, peer_id: str) -> int:
        """No step touches the dead peer's pages any more: they come back; returns how many came free.

        A fence that overtakes the notice of death (two sockets have no common order) is remembered until
        that notice, or until the peer, alive after all, leases again.
        """
        if peer_id not in self._dead:
            if peer_id in self._peers:
                self._fenced_early.add(peer_id)
            return 0
        self._dead.remove(peer_id)
        num_freed = 0
        for holder in list(self._peers[peer_id]):
            pages = self._held[holder]
            for page in pages:
                self._dead_refs[page] -= 1
                if self._refs[page] - self._dead_refs[page] == 1:  # counted as leased again until it is dropped
                    self._num_quarantined -= 1
                    self._num_leased += 1
            self._forget(holder)
            num_freed += self._drop_refs(list(pages))
        return num_freed

    def fence_all(self) -> int:
        """The batcher is dead: nothing touches any page any more; returns how many came free."""
        return sum(self.fence(peer_id) for peer_id in sorted(self._dead))

    def check(self) -> None:
        """Raise `internal` with every term unless the books balance; O(total)."""
        refs = [0] * self.total
        for pages in self._held.values():
            for page in pages:
                refs[page] += 1
        leased = sum(self._is_leased(p) for p in range(self.total))
        quarantined = sum(0 < self._refs[p] == self._dead_refs[p] for p in range(self.total))
        is_sound = (
            len(self._free) + leased + quarantined == self.total
            and (leased, quarantined) == (self._num_leased, self._num_quarantined)
            and refs == self._refs
            and len(set(self._free)) == len(self._free)
            and all(self._refs[p] == 0 for p in self._free)
        )
        if not is_sound:
            raise PierayError(
                f"page ledger does not balance: free {len(self._free)} + leased {leased} (counted {self._num_leased}) "
                f"+ quarantined {quarantined} (counted {self._num_quarantined}) against total {self.total}; "
                f"references {sum(self._refs)}, held {sum(refs)}, dead {sum(self._dead_refs)}"
            )

    # --- inside --------------------------------------------------------------------------------

    def _is_leased(self, page: int) -> bool:
        return 0 <= page < self.total and self._refs[page] > self._dead_refs[page]

    def _check_alive(self, peer_id: str) -> None:
        if peer_id in self._dead:
            raise PeerLost(f"peer {peer_id} is dead; its pages wait for the batcher's fence")

    def _holding(self, holder: Holder) -> dict[int, None]:
        if holder not in self._held:
            self._held[holder] = {}
            self._peers.setdefault(holder.peer_id, {})[holder] = None
        return self._held[holder]

    def _forget(self, holder: Holder) -> None:
        del self._held[holder]
        holders = self._peers[holder.peer_id]
        del holders[holder]
        if not holders:
            del self._peers[holder.peer_id]
            self._fenced_early.discard(holder.peer_id)

    def _quarantine(self, pages: dict[int, None]) -> None:
        for page in pages:
            self._dead_refs[page] += 1
            if self._refs[page] == self._dead_refs[page]:
                self._num_leased -= 1
                self._num_quarantined += 1

    def _drop_refs(self, pages: Sequence[int]) -> int:
        num_before = len(self._free)
        for page in reversed(pages):
            self._refs[page] -= 1
            if self._refs[page] == 0:
                self._free.append(page)
                self._num_leased -= 1
            elif self._refs[page] == self._dead_refs[page]:
                self._num_leased -= 1
                self._num_quarantined += 1
        return len(self._free) - num_before
