"""A handle of the engine for each user that asks: what it launches is theirs, with their names, pages and quotas."""

from __future__ import annotations

import asyncio

from pieray.client.connecting import connect_door
from pieray.client.engine import Engine
from pieray.concurrency.off_loop import off_loop
from pieray.errors import ConfigError
from pieray.server.keys import Caller


class Tenants:
    """Handles, each opened when its user first asks.  For one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._opening: dict[tuple[str, str], asyncio.Future[Engine]] = {}
        self._broken: list[Engine] = []
        """Handles whose link to the Controller broke; others are in their place."""

    async def engine_of(self, caller: Caller) -> Engine:
        """The handle for what this caller does.  Raises PierayError."""
        where = caller.tenant, caller.user
        if where == (self.engine.tenant, self.engine.user):
            return self.engine
        opening = self._opening.get(where)
        if opening is not None and _is_broken(opening):  # its runs may go on: it is closed with the others
            self._broken.append(opening.result())
            opening = None
        if opening is None:
            opening = self._opening[where] = asyncio.ensure_future(off_loop(self._open, caller))
            opening.add_done_callback(lambda done: self._forget_failed(where, done))
        return await asyncio.shield(opening)

    def _open(self, caller: Caller) -> Engine:
        endpoint, token = self.engine.door()
        if not endpoint:
            raise ConfigError("keys need an engine with sockets: its transport is ray")
        opened = connect_door(endpoint, token)
        opened.tenant, opened.user = caller.tenant, caller.user
        return opened

    def _forget_failed(self, where: tuple[str, str], opened: asyncio.Future[Engine]) -> None:
        if (opened.cancelled() or opened.exception() is not None) and self._opening.get(where) is opened:
            del self._opening[where]

    async def close(self) -> None:
        """Hang up all but the handle that this was made with."""
        opened = [one.result() for one in self._opening.values() if _is_there(one)]
        for engine in (*opened, *self._broken):
            await off_loop(engine.close)
        self._opening.clear()
        self._broken.clear()


def _is_there(opening: asyncio.Future[Engine]) -> bool:
    return opening.done() and not opening.cancelled() and opening.exception() is None


def _is_broken(opening: asyncio.Future[Engine]) -> bool:
    return _is_there(opening) and not opening.result().is_open
