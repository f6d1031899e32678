"""What the runs of keys with a rate of tokens have used, their children's tokens too, counted while they run."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pieray.client.process import Process
from pieray.concurrency.off_loop import off_loop
from pieray.errors import PierayError
from pieray.server.keys import Caller, Rates
from pieray.server.tenants import Tenants

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often the engine is asked, while such a run goes on."""


@dataclass(slots=True)
class _Watched:
    """A run and all that it has launched."""

    process: Process
    caller: Caller
    num_counted: int = 0


class Meter:
    """Counts tokens of runs against the rates of their keys.  For one event loop; at rest while there are none."""

    def __init__(self, tenants: Tenants, rates: Rates) -> None:
        self._tenants = tenants
        self._rates = rates
        self._watched: dict[str, _Watched] = {}
        self._looking: asyncio.Task[None] | None = None

    def watch(self, process: Process, caller: Caller) -> None:
        """Count this run from now on, if its caller has a rate of tokens."""
        if not caller.tokens_per_minute:
            return
        self._watched[process.id] = _Watched(process, caller)
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look_again())

    async def _look_again(self) -> None:
        try:
            while self._watched:
                await asyncio.sleep(LOOK_S)
                try:
                    await self._look()
                except PierayError as error:  # the engine does not answer now
                    log.debug("tokens are not counted now: %s", error)
                except Exception:
                    log.exception("tokens are not counted now")
        finally:
            self._looking = None

    async def _look(self) -> None:
        ended = {run_id for run_id, one in self._watched.items() if one.process.is_done}
        rows = await off_loop(self._tenants.engine.ps)
        by_id = {str(row["instance_id"]): row for row in rows}
        children = defaultdict[str, list[str]](list)
        for row in rows:
            children[str(row.get("parent", ""))].append(str(row["instance_id"]))
        for run_id in list(self._watched):
            family = list(_family(run_id, children))
            there = [by_id[one] for one in family if one in by_id]
            self._count(self._watched[run_id], _tokens(there))
            if run_id in ended and not any(row["state"] in ("running", "unreachable") for row in there):
                if run_id not in by_id:  # it ended so long ago that the engine lists it no more
                    await self._count_alone(self._watched[run_id])
                del self._watched[run_id]

    async def _count_alone(self, one: _Watched) -> None:
        try:
            usage = await one.process.ausage()
            self._count(one, usage["tokens_computed"] + usage["tokens_found"])
        except PierayError as error:
            log.debug("%s is not counted: %s", one.process.id, error)

    def _count(self, one: _Watched, num_tokens: int) -> None:
        more = num_tokens - one.num_counted
        if more > 0:  # less: some of the family are listed no more
            one.num_counted = num_tokens
            self._rates.count_tokens(one.caller, more)


def _family(run_id: str, children: Mapping[str, list[str]]) -> Iterable[str]:
    """The run, and all that it and its children have launched."""
    found, at = [run_id], 0
    while at < len(found):
        found += children.get(found[at], ())
        at += 1
    return found


def _tokens(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row.get("tokens_computed", 0) + row.get("tokens_found", 0) for row in rows)
