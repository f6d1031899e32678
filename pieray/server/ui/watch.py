"""What the engine looks like: asked of it once for all who look, and its pages kept for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pieray.client.engine import Engine
from pieray.concurrency.off_loop import off_loop
from pieray.engine_metrics import pages_of_groups, steps_of_groups
from pieray.errors import PierayError

log = logging.getLogger(__name__)

FRESH_S = 1.0
"""What was asked so long ago is asked again."""
KEEP_SAMPLES = 900
SAMPLE_S = 2.0
"""Pages are looked at so often, and KEEP_SAMPLES kept: half an hour."""
WATCH_S = 1800.0
"""They are looked at as long as somebody has looked in so many seconds."""
PAGES = ("free", "leased", "cached", "quarantined")


@dataclass(frozen=True, slots=True)
class Seen:
    """The engine at one time."""

    at: float
    """Unix time."""
    status: Mapping[str, Any]
    inferlets: list[dict[str, Any]]


class Watch:
    """Asks an engine how it is, at most once in FRESH_S, however many look.  For one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: Seen | None = None
        self._asking: asyncio.Task[Seen] | None = None
        self._samples: deque[list[float]] = deque(maxlen=KEEP_SAMPLES)
        self._looked_at = 0.0
        self._sampling: asyncio.Task[None] | None = None

    async def look(self, *, anew: bool = False) -> Seen:
        """The engine as it was within FRESH_S, or (`anew`) as it is from now on.  Raises PierayError."""
        self._looked_at = time.monotonic()
        if self._sampling is None or self._sampling.done():
            self._sampling = asyncio.ensure_future(self._sample())
        return await asyncio.shield(self._begun(anew=True)) if anew else await self._fresh()

    async def _fresh(self) -> Seen:
        if self._seen is not None and 0 <= time.time() - self._seen.at < FRESH_S:
            return self._seen
        return await asyncio.shield(self._begun(anew=False))

    def _begun(self, *, anew: bool) -> asyncio.Task[Seen]:
        """What asks the engine at present, or begins to."""
        if anew or self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask())
        return self._asking

    async def _ask(self) -> Seen:
        status, inferlets = await asyncio.gather(off_loop(self._engine.status), off_loop(self._engine.ps))
        self._seen = Seen(time.time(), status, inferlets)
        return self._seen

    def samples(self, since: float) -> list[list[float]]:
        """Pages over time, those newer than a Unix time: [time, pages by state in the order of PAGES, swapped]."""
        return [sample for sample in self._samples if sample[0] > since]

    async def _sample(self) -> None:
        while time.monotonic() - self._looked_at < WATCH_S:
            try:
                seen = await self._fresh()
            except PierayError as error:
                log.debug("the pages are not known: %s", error)
            else:
                if (pages := pages_of(seen.status)) is not None:
                    self._samples.append([seen.at, *(pages[state] for state in PAGES), pages["swapped"]])
            await asyncio.sleep(SAMPLE_S)

    def close(self) -> None:
        for task in (self._sampling, self._asking):
            if task is not None:
                task.cancel()


def pages_of(status: Mapping[str, Any]) -> dict[str, int] | None:
    """KV pages: total, by state, and those in host memory beside; None: nobody answers for them at present."""
    if (ledger := pages_of_groups(status["actors"])) is None:
        return None
    swap = (steps_of_groups(status["actors"]) or {"swap": {"used": 0}})["swap"]
    return {"total": ledger["total"], **{state: ledger[state] for state in PAGES}, "swapped": swap["used"]}
