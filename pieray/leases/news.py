"""What a device group tells InferletActors of itself, where there are several: what it holds, and how many compute."""

from __future__ import annotations

from pieray.leases.exports import ExportTable
from pieray.leases.index import PageIndex
from pieray.leases.rank import Ranks
from pieray.messages import GroupNews


class News:
    """Looks at index, exports and programs; to be called with the lock that guards them held."""

    def __init__(self, index: PageIndex, exports: ExportTable, ranks: Ranks) -> None:
        self._index, self._exports, self._ranks = index, exports, ranks
        self._told = (0, 0)  # programs, and how many have begun, when it was last told
        index.changes, exports.changes = {}, {}

    def whole(self) -> GroupNews:
        """All that there is, for who hears of it for the first time."""
        names = [*self._index.hashes(), *self._exports.names()]
        return GroupNews(_prints(names), b"", self._ranks.num_programs, is_whole=True)

    def take(self) -> GroupNews | None:
        """What has changed since this was called last; None: nothing."""
        changes = {**(self._index.changes or {}), **(self._exports.changes or {})}
        self._index.changes, self._exports.changes = {}, {}
        num_programs = self._ranks.num_programs
        programs = num_programs, self._ranks.num_opened  # who has begun and ended meanwhile counts where it was chosen
        if not changes and programs == self._told:
            return None
        self._told = programs
        came = [name for name, is_here in changes.items() if is_here]
        gone = [name for name, is_here in changes.items() if not is_here]
        return GroupNews(_prints(came), _prints(gone), num_programs)


def _prints(hashes: list[bytes]) -> bytes:
    """What `fingerprints` reads."""
    return b"".join([name[:4] for name in hashes])
