"""Whose the slots of host memory are that hold swapped pages.  Numbers only; `pieray.models.host_pool` has the memory.

A slot is *free*, *held* (it keeps a page for its owner), or *busy* (a command is about to write or read it).  What is
dropped while it is busy comes free when the command has ended.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence
from enum import Enum, auto

from pieray.errors import InvalidRequest, PierayError
from pieray.sched.lanes import LaneKey


class _State(Enum):
    HELD = auto()
    BUSY = auto()
    DROPPED = auto()  # and busy


class SwapSlots:
    """`total` slots, given out from the lowest on, so that memory is used from its beginning.

    Thread-safe.  An owner is an inferlet of a peer.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._lock = threading.Lock()
        self._free: list[int] = []  # a heap: those below `_num_begun` that nobody has
        self._num_begun = 0  # slots from here on have never been used
        self._owned: dict[LaneKey, dict[int, _State]] = {}  # none is empty
        self._full: set[int] = set()  # slots with a page that nobody has read or given up
        self._num_out = self._num_in = self._num_dropped = 0

    def take(self, owner: LaneKey, count: int) -> list[int]:
        """Up to `count` free slots, as many as there are: they are busy."""
        with self._lock:
            taken = [heapq.heappop(self._free) for _ in range(min(count, len(self._free)))]
            first = self._num_begun
            self._num_begun = min(first + count - len(taken), self.total)
            taken += range(first, self._num_begun)
            if taken:
                self._owned.setdefault(owner, {}).update(dict.fromkeys(taken, _State.BUSY))
            return taken

    def borrow(self, owner: LaneKey, slots: Sequence[int]) -> None:
        """Held slots are busy from now on.  InvalidRequest, and nothing changes, unless all are the owner's, held, and
        named once."""
        with self._lock:
            owned = self._owned.get(owner, {})
            for slot in slots:
                if owned.get(slot) is not _State.HELD:
                    what = "is to be read by an earlier command" if slot in owned else "is not this inferlet's"
                    raise InvalidRequest(f"swapped page {slot} {what}")
            if len(set(slots)) != len(slots):
                twice = next(slot for place, slot in enumerate(slots) if slot in slots[:place])
                raise InvalidRequest(f"swapped page {twice} is named twice")
            owned.update(dict.fromkeys(slots, _State.BUSY))

    def keep(self, owner: LaneKey, slots: Sequence[int], *, is_new: bool = False) -> None:
        """Busy slots are held from now on, or free if they were dropped meanwhile; `is_new`: pages have come in."""
        with self._lock:
            owned = self._owned.get(owner, {})
            mine = [slot for slot in slots if slot in owned]
            if is_new:
                self._full.update(mine)
                self._num_out += len(mine)
            self._free_all(owner, [slot for slot in mine if owned[slot] is _State.DROPPED])
            owned.update({slot: _State.HELD for slot in mine if slot in owned})

    def free(self, owner: LaneKey, slots: Sequence[int], *, is_read: bool = False) -> None:
        """Busy slots are free; `is_read`: their pages have gone back."""
        with self._lock:
            mine = [slot for slot in slots if slot in self._owned.get(owner, {})]
            if is_read:
                self._full.difference_update(mine)
                self._num_in += len(mine)
            self._free_all(owner, mine)

    def drop(self, owner: LaneKey, slots: Sequence[int]) -> None:
        """The owner does not want these any more; those that are not its own are left alone."""
        with self._lock:
            owned = self._owned.get(owner, {})
            mine = [slot for slot in dict.fromkeys(slots) if slot in owned]
            owned.update({slot: _State.DROPPED for slot in mine if owned[slot] is _State.BUSY})
            self._free_all(owner, [slot for slot in mine if owned[slot] is _State.HELD])

    def close(self, peer_id: str, inferlet: int | None = None) -> None:
        """An inferlet, or all of a peer, has ended, and no command of it will run: its slots are free."""
        with self._lock:
            for owner in [key for key in self._owned if key[0] == peer_id and inferlet in (None, key[1])]:
                self._free_all(owner, list(self._owned[owner]))

    def check(self) -> None:
        """Raise `internal` with every term unless each slot that was ever used is free or of one owner, and each page
        that went out came back, was given up or is there; O(used)."""
        with self._lock:
            used = [slot for owned in self._owned.values() for slot in owned]
            free, num_begun, num_owners = list(self._free), self._num_begun, len(self._owned)
            is_tidy = all(self._owned.values()) and self._full.issubset(used)
            counts = self._num_out, self._num_in, self._num_dropped, len(self._full)
        seen = sorted([*used, *free])
        is_tidy = is_tidy and counts[0] == sum(counts[1:])
        if seen != list(range(num_begun)) or num_begun > self.total or not is_tidy:
            raise PierayError(
                f"swap slots do not balance: used {len(used)}, free again {len(free)}, distinct {len(set(seen))}, "
                f"begun {num_begun}, total {self.total}, owners {num_owners}; pages out {counts[0]}, in {counts[1]}, "
                f"given up {counts[2]}, there {counts[3]}"
            )

    def status(self) -> dict[str, int]:
        """Slots in all and used; pages swapped out, in, and given up unread (`dropped`), ever; the books are checked
        first."""
        self.check()
        with self._lock:
            return {
                "slots": self.total,
                "used": self._num_begun - len(self._free),
                "swapped_out": self._num_out,
                "swapped_in": self._num_in,
                "dropped": self._num_dropped,
            }

    def _free_all(self, owner: LaneKey, slots: Sequence[int]) -> None:
        if not slots:
            return
        owned = self._owned[owner]
        for slot in slots:
            del owned[slot]
            self._num_dropped += slot in self._full
            self._full.discard(slot)
            heapq.heappush(self._free, slot)
        if not owned:
            del self._owned[owner]
