"""What has happened to the programs of each tenant in the page pool, counted since the ResourceManager is up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

MOST_TENANTS = 1000
"""Of which counts are kept: those counted last."""
NAMES = ("found", "waited", "preempted", "swapped")


class TenantCounts:
    """By tenant: pages `found` by their content, requests that `waited` for pages, times that a program was `preempted`
    (it gave up its pages for others), and the pages that were `swapped` so: copied to host memory, or dropped."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, dict[str, int]] = OrderedDict()

    def add(self, tenant: str, name: str, count: int = 1) -> None:
        """`name` is one of `NAMES`."""
        if not count:
            return
        counts = self._counts.setdefault(tenant, dict.fromkeys(NAMES, 0))
        counts[name] += count
        self._counts.move_to_end(tenant)
        if len(self._counts) > MOST_TENANTS:
            self._counts.popitem(last=False)

    def status(self, held: Mapping[str, int], waiting: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """The counts, with the pages `held` and the requests `waiting` at present."""
        found = dict.fromkeys((*self._counts, *held, *waiting))
        nothing = dict.fromkeys(NAMES, 0)
        return {
            name: {"held": held.get(name, 0), "waiting": waiting.get(name, 0), **self._counts.get(name, nothing)}
            for name in found
        }
