"""Places that tenants share on one event loop: some are each tenant's own, the rest go to who has least."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple


class Who(NamedTuple):
    """For whom something is done."""

    tenant: str = ""
    inferlet: str = ""


class Shares:
    """Places for work that waits for the world: connections, lookups, calls.

    A tenant's first `own` places are always free for it, so that nobody waits for another tenant to have one.  Beyond
    these there are `common` ones, of which a tenant has half at most; one that comes free goes to the waiting tenant
    with the fewest places, and there to the inferlet with the fewest, first come, first served.  One inferlet has half
    of its tenant's at most.  For one event loop alone.
    """

    def __init__(self, own: int, common: int) -> None:
        self.own = own
        self.common = common
        self.tenant_most = own + max(common // 2, 1)
        self.inferlet_most = max(self.tenant_most // 2, 1)
        self._by_tenant: Counter[str] = Counter()
        self._by_inferlet: Counter[Who] = Counter()
        self._waiting: OrderedDict[asyncio.Future[None], Who] = OrderedDict()

    @asynccontextmanager
    async def place(self, who: Who) -> AsyncIterator[None]:
        """Hold a place while the body runs; waits for one, so give it a deadline."""
        await self.take(who)
        try:
            yield
        finally:
            self.give(who)

    async def take(self, who: Who) -> None:
        """Wait for a place; to be given back with `give`."""
        if self._may_have(who):
            self._hold(who)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = who
        try:
            await turn
        except BaseException:
            if self._waiting.pop(turn, None) is None:  # it was given the place as it was cancelled
                self.give(who)
            raise

    def give(self, who: Who) -> None:
        """A place is free again."""
        self._by_tenant[who.tenant] -= 1
        self._by_inferlet[who] -= 1
        self._by_tenant += Counter()  # keeps what is above 0
        self._by_inferlet += Counter()
        while (turn := self._next()) is not None:
            self._hold(self._waiting.pop(turn))
            turn.set_result(None)

    @property
    def num_held(self) -> int:
        return self._by_tenant.total()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def _hold(self, who: Who) -> None:
        self._by_tenant[who.tenant] += 1
        self._by_inferlet[who] += 1

    def _may_have(self, who: Who) -> bool:
        has = self._by_tenant[who.tenant]
        if has >= self.tenant_most or self._by_inferlet[who] >= self.inferlet_most:
            return False
        return has < self.own or self._num_common() < self.common

    def _num_common(self) -> int:
        return sum(max(num - self.own, 0) for num in self._by_tenant.values())

    def _next(self) -> asyncio.Future[None] | None:
        """Whose turn it is, if there is a place for one of those who wait."""
        turns = [
            (self._by_tenant[who.tenant], self._by_inferlet[who], i, turn)
            for i, (turn, who) in enumerate(self._waiting.items())
            if not turn.done() and self._may_have(who)
        ]
        return min(turns, key=lambda entry: entry[:3])[3] if turns else None
