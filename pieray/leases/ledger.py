"""Who holds which KV page: the plain heart of the ResourceManager.

Pages are numbered `[0, total)`.  A page is *leased* (a live holder has it), *cached* (else an export keeps
it, or the index alone has it), *quarantined* (else a holder of a dead peer has it, and the batcher may still be
writing to it) or *free*.  After every operation, `free + leased + cached + quarantined == total`.

A holder may have a page several times, once for its lease and once for each import; exports keep pages
beside all holders (`keep`, `drop`): what they keep is complete, so that no death of a peer touches it.

The same goes for pages that are full and written, and named by their content (`enter`): a lease that names content
(`hashes`) is given them, shared, in place of free ones.  When their last holder is gone they are *idle*: cached, and
as good as free to whoever asks (`num_available`).

Free pages are a stack: the lowest ids go first, and pages that come back are the next to be given,
in the order in which they were released.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from pieray.errors import InvalidRequest, OutOfPages, PeerLost, PierayError
from pieray.leases.index import PageIndex
from pieray.messages.leases import Place


class Holder(NamedTuple):
    """One inferlet of one peer: what leases are kept by."""

    peer_id: str
    inferlet: int


class Lease(NamedTuple):
    """Pages of a lease: the first `num_found` hold what was asked for by its hashes, the others nothing of use."""

    pages: list[int]
    num_found: int


class _State(IntEnum):
    FREE = 0
    LEASED = 1
    CACHED = 2
    QUARANTINED = 3


class PageLedger:
    """Leases, reference counts, exports' pages and quarantine of `total` pages; all operations are O(pages named)."""

    def __init__(self, total: int) -> None:
        if total < 1:
            raise InvalidRequest(f"a page pool has at least 1 page; given {total}")
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._refs = [0] * total
        self._dead_refs = [0] * total  # of those, how many are holders of dead peers
        self._kept = [0] * total  # exports with the page
        self._held: dict[Holder, dict[int, int]] = {}  # how many times, by page
        self._peers: dict[str, dict[Holder, None]] = {}
        self._dead: set[str] = set()  # peers whose pages wait for their fence
        self._fenced_early: set[str] = set()
        self._num = dict.fromkeys(_State, 0)
        self._num[_State.FREE] = total
        self.index = PageIndex()
        self.num_found = 0  # pages leased by their content, ever
        self._resting: list[int] = []  # pages that the operation in progress leaves idle

    # --- what is where -------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_idle(self) -> int:
        """Cached pages that the index alone has."""
        return self.index.num_idle

    @property
    def num_available(self) -> int:
        """Pages that a lease may take: free ones, and idle ones, which are dropped for it."""
        return len(self._free) + self.index.num_idle

    @property
    def num_indexed(self) -> int:
        """Pages known by their content, whoever has them."""
        return len(self.index)

    @property
    def num_leased(self) -> int:
        return self._num[_State.LEASED]

    @property
    def num_cached(self) -> int:
        return self._num[_State.CACHED]

    @property
    def num_quarantined(self) -> int:
        return self._num[_State.QUARANTINED]

    @property
    def dead_peers(self) -> list[str]:
        """Peers whose pages wait for their fence."""
        return sorted(self._dead)

    def pages_of(self, holder: Holder) -> list[int]:
        """Pages of the holder, oldest lease first."""
        return list(self._held.get(holder, ()))

    def num_pages_of(self, holder: Holder) -> int:
        return len(self._held.get(holder, ()))

    def held(self) -> dict[Holder, int]:
        """How many pages each holder has."""
        return {holder: len(pages) for holder, pages in self._held.items()}

    def kept_pages_of(self, holder: Holder) -> list[int]:
        """Pages of the holder that an export keeps: to give them up makes no room."""
        return [page for page in self._held.get(holder, ()) if self._kept[page]]

    def references(self, holder: Holder) -> list[tuple[int, int, int]]:
        """The others: how many times the holder has each, and how many times all have it."""
        held = self._held.get(holder, {})
        return [(page, count, self._refs[page]) for page, count in held.items() if not self._kept[page]]

    def is_held(self, holder: Holder, pages: Iterable[int]) -> bool:
        """Whether the holder has one of the pages."""
        held = self._held.get(holder, {})
        return any(page in held for page in pages)

    def is_leased(self, page: int) -> bool:
        """Whether a live holder has the page."""
        return 0 <= page < self.total and self._refs[page] > self._dead_refs[page]

    # --- leasing -------------------------------------------------------------------------------

    def admit(self, holder: Holder, count: int, num_waiting: int = 0, least: int = 1) -> None:
        """Check that `count` pages could ever be leased to the holder, who already waits for `num_waiting`.

        Raises InvalidRequest (count < least), OutOfPages (more than the pool has, with what the holder has) and
        PeerLost (the peer is dead).
        """
        if count < least:
            raise InvalidRequest(f"a lease is of at least {least} page; given {count}")
        self._check_alive(holder.peer_id)
        held = self.num_pages_of(holder)
        if held + num_waiting + count > self.total:
            raise OutOfPages(
                f"the pool has {self.total} pages (settings model.num_pages, model.kv_memory_bytes); "
                f"this inferlet holds {held}, waits for {num_waiting} and asked for {count} more"
            )

    def lease(self, holder: Holder, count: int) -> list[int] | None:
        """`count` pages, now the holder's; None (nothing changed) while fewer are available.  Raises as `admit`."""
        self.admit(holder, count)
        lease = self.take(holder, count)
        return None if lease is None else lease.pages

    def take(self, holder: Holder, count: int, hashes: Sequence[bytes] = ()) -> Lease | None:
        """As `lease`, for a request that `admit` has let pass before.  The pages of the longest chain of `hashes` that
        is known come first, shared, and count as some of `count`; they may be more."""
        found = self.index.find(hashes) if hashes else []
        num_more = max(0, count - len(found))
        if num_more > self.num_available - sum(map(self.index.is_idle, found)):
            return None
        self._hold(holder, found)
        self.num_found += len(found)
        while num_more > len(self._free):
            self._free_idle(self.index.evict())
        pages = self._free[: -num_more - 1 : -1]
        del self._free[len(self._free) - num_more :]
        self._hold(holder, pages)
        return Lease(found + pages, len(found))

    def share(self, holder: Holder, pages: Sequence[int]) -> None:
        """Make the holder a holder, or once more one, of pages that are leased or cached.

        Raises InvalidRequest naming pages that are neither, or named twice, and PeerLost; then nothing has changed.
        """
        wrong = [p for p in pages if not self.is_leased(p) and not (0 <= p < self.total and self._kept[p])]
        if wrong or len(set(pages)) != len(pages):
            raise InvalidRequest(f"pages {wrong or list(pages)} are not leased or exported, or are named twice")
        self._check_alive(holder.peer_id)
        self._hold(holder, pages)

    # --- the index -----------------------------------------------------------------------------

    def enter(self, holder: Holder, pages: Sequence[int], places: Sequence[Place]) -> None:
        """Pages of the holder are full and written, and will not be written to again: they are known by their content
        from now on.  Raises InvalidRequest naming pages that the holder does not have, and PeerLost; then nothing has
        changed."""
        self._check_held(holder, pages)
        for page, place in zip(pages, places, strict=True):
            self.index.add(page, place)

    def drop_index(self) -> None:
        """What pages hold is known no more: idle ones are free."""
        for page in self.index.clear():
            self._free_idle(page)

    # --- exports -------------------------------------------------------------------------------

    def keep(self, holder: Holder, pages: Sequence[int]) -> None:
        """An export of the holder keeps the pages, whatever becomes of the holder.

        Raises InvalidRequest naming pages that the holder does not have, or names twice, and PeerLost; then
        nothing has changed.
        """
        if len(set(pages)) != len(pages):
            raise InvalidRequest(f"an export's pages are distinct; given {list(pages)}")
        self._check_held(holder, pages)
        for page in pages:
            self._change(page, kept=1)

    def drop(self, pages: Sequence[int]) -> int:
        """An export lets go of its pages; returns how many came to be available."""
        return self._all_changed(pages, kept=-1)

    # --- giving back ---------------------------------------------------------------------------

    def release(self, holder: Holder, pages: Sequence[int]) -> int:
        """Give pages back; returns how many came to be available.

        Raises InvalidRequest naming the pages that the holder does not hold, or not as often as it names them, and
        PeerLost for a dead peer, whose pages only its fence frees; then nothing has changed.
        """
        held = self._check_held(holder, pages)
        for page in pages:
            held[page] -= 1
            if not held[page]:
                del held[page]
        if pages and not held:
            self._forget(holder)
        return self._all_changed(pages, refs=-1)

    def close(self, holder: Holder) -> int:
        """All pages of the holder come back; returns how many came to be available.  A dead peer's wait for its
        fence: 0."""
        if holder.peer_id in self._dead or holder not in self._held:
            return 0
        held = self._held[holder]
        again = [page for page, count in held.items() for _ in range(count - 1)]
        self._all_changed(again, refs=-1)
        held.update(dict.fromkeys(again, 1))
        return self.release(holder, list(held))

    # --- death of peers ------------------------------------------------------------------------

    def drop_peer(self, peer_id: str, *, fenced: bool) -> int:
        """The peer is dead: its pages are quarantined until its fence; returns how many came to be available.

        `fenced`: the batcher is known not to touch its pages (the peer never talked to one), so that they come
        free at once.  A second notice changes nothing.
        """
        if peer_id in self._fenced_early:
            self._fenced_early.remove(peer_id)
            fenced = True
        if peer_id not in self._peers:
            return 0
        if peer_id not in self._dead:
            self._dead.add(peer_id)
            for holder in self._peers[peer_id]:
                for page, count in self._held[holder].items():
                    self._change(page, dead=count)
        return self.fence(peer_id) if fenced else 0

    def fence(self, peer_id: str) -> int:
        """No step touches the dead peer's pages any more: they come back; returns how many came to be available.

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
            held = self._held[holder]
            self._forget(holder)
            num_before = self.num_available
            for page in reversed(held):
                self._change(page, refs=-held[page], dead=-held[page])
            self._rest()
            num_freed += self.num_available - num_before
        return num_freed

    def check(self) -> None:
        """Raise `internal` with every term unless the books balance; O(total)."""
        refs = [0] * self.total
        for held in self._held.values():
            for page, count in held.items():
                refs[page] += count
        self.index.check()
        states = [self._state(page) for page in range(self.total)]
        idle = [self._is_idle(page) for page in range(self.total)]
        num = {state: states.count(state) for state in _State}
        is_sound = (
            num == self._num
            and len(self._free) == num[_State.FREE]
            and refs == self._refs
            and idle == [self.index.is_idle(page) for page in range(self.total)]
            and len(set(self._free)) == len(self._free)
            and all(states[page] is _State.FREE for page in self._free)
            and all(0 <= dead <= held for dead, held in zip(self._dead_refs, self._refs, strict=True))
        )
        if not is_sound:
            terms = ", ".join(f"{state.name.lower()} {num[state]} (counted {self._num[state]})" for state in _State)
            raise PierayError(
                f"page ledger does not balance: {terms}; in the free list {len(self._free)}; total {self.total}; "
                f"references {sum(self._refs)}, held {sum(refs)}, dead {sum(self._dead_refs)}, kept {sum(self._kept)}, "
                f"idle {sum(idle)} (counted {self.num_idle})"
            )

    # --- inside --------------------------------------------------------------------------------

    def _state(self, page: int) -> _State:
        if self._refs[page] > self._dead_refs[page]:
            return _State.LEASED
        if self._kept[page]:
            return _State.CACHED
        if self._refs[page]:
            return _State.QUARANTINED
        return _State.CACHED if page in self.index else _State.FREE

    def _is_idle(self, page: int) -> bool:
        return not self._refs[page] and not self._kept[page] and page in self.index

    def _change(self, page: int, *, refs: int = 0, dead: int = 0, kept: int = 0) -> None:
        """All that changes a page's counts; one that comes free is the next to be given, one that comes to be idle is
        left to `_rest`."""
        before = self._state(page)
        if self.index.is_idle(page):
            self.index.wake(page)
        self._refs[page] += refs
        self._dead_refs[page] += dead
        self._kept[page] += kept
        after = self._state(page)
        self._num[before] -= 1
        self._num[after] += 1
        if after is _State.FREE and before is not after:
            self._free.append(page)
        elif after is _State.CACHED and self._is_idle(page):
            self._resting.append(page)

    def _rest(self) -> None:
        if self._resting:
            self.index.rest(self._resting)
            self._resting.clear()

    def _free_idle(self, page: int) -> None:
        """A page that was idle is not in the index any more."""
        self._num[_State.CACHED] -= 1
        self._num[_State.FREE] += 1
        self._free.append(page)

    def _all_changed(self, pages: Sequence[int], *, refs: int = 0, kept: int = 0) -> int:
        """Change the pages so that the first of them is the next to be given; returns how many came to be available."""
        num_before = self.num_available
        for page in reversed(pages):
            self._change(page, refs=refs, kept=kept)
        self._rest()
        return self.num_available - num_before

    def _check_alive(self, peer_id: str) -> None:
        if peer_id in self._dead:
            raise PeerLost(f"peer {peer_id} is dead; its pages wait for the batcher's fence")

    def _check_held(self, holder: Holder, pages: Sequence[int]) -> dict[int, int]:
        self._check_alive(holder.peer_id)
        held = self._held.get(holder, {})
        missing = [p for p, count in Counter(pages).items() if held.get(p, 0) < count]
        if missing:
            raise InvalidRequest(
                f"pages {missing} are not held by inferlet {holder.inferlet} of {holder.peer_id}, or not that often"
            )
        return held

    def _hold(self, holder: Holder, pages: Sequence[int]) -> None:
        if not pages:
            return
        self._fenced_early.discard(holder.peer_id)  # alive after all
        held = self._held.setdefault(holder, {})
        self._peers.setdefault(holder.peer_id, {})[holder] = None
        for page in pages:
            held[page] = held.get(page, 0) + 1
            self._change(page, refs=1)

    def _forget(self, holder: Holder) -> None:
        del self._held[holder]
        holders = self._peers[holder.peer_id]
        del holders[holder]
        if not holders:
            del self._peers[holder.peer_id]
            self._fenced_early.discard(holder.peer_id)
