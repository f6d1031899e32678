"""The runs that this server has launched: whose they are, who waits for each, how long each is kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pieray.client.process import Process
from pieray.concurrency.off_loop import off_loop
from pieray.errors import Cancelled, PierayError
from pieray.programs.sources import embedded
from pieray.server.guard import check_priority
from pieray.server.json_texts import encoded
from pieray.server.keys import Caller
from pieray.server.meter import Meter
from pieray.server.metrics import Metrics
from pieray.server.problems import HttpProblem, problem_of
from pieray.server.runs.events import raw
from pieray.server.runs.wanted import Wanted
from pieray.server.streams import kill_soon
from pieray.server.tenants import Tenants
from pieray.server.values import shown

log = logging.getLogger(__name__)

MOST_KEPT = 512
"""Runs of one tenant that the door knows, ended ones included."""
MOST_KEPT_BYTES = 64 << 20
"""Of the events of one tenant's runs that have ended."""
KILL_AGAIN_S = 70.0
"""A run that was told to end, and has not, is told again after so long."""
KEPT_S = 600.0
"""Ended runs are kept so long, if there is room."""
WATCH_S = 0.5
"""How often runs are looked after."""
LEAST_KEEP_S = 2.0
"""For whoever has launched a run to begin to read it."""

OwnKey: TypeAlias = tuple[str, str, str]
"""Tenant, user, and the idempotency key that they have given."""


@dataclass(slots=True)
class Run:
    """One run."""

    process: Process
    program: str
    caller: Caller
    keep_s: float
    """So long it goes on when nobody reads it."""
    key: OwnKey | None = None
    """Its idempotency key."""
    created: float = field(default_factory=time.time)
    num_readers: int = 0
    left_at: float = 0.0
    """By the loop's clock, when the last reader left."""
    ended_at: float = 0.0
    killed_at: float = -math.inf
    """When it was last told to end, since nobody waits for it."""
    num_bytes: int = 0
    """Of its events, when it has ended."""

    def is_seen_by(self, caller: Caller) -> bool:
        """By its tenant, and by who administers the server."""
        return caller.is_admin or caller.tenant == self.caller.tenant

    def state(self) -> dict[str, Any]:
        """All but its result, which may be large."""
        found: dict[str, Any] = {"id": self.process.id, "object": "run", "program": self.program}
        found |= {"created": int(self.created), "num_events": self.process.num_events}
        if not self.process.is_done:
            return {**found, "state": "running"}
        try:
            self.process.ending()
        except PierayError as error:
            state = "killed" if error.code == "cancelled" else "failed"
            return {**found, "state": state, **problem_of(error).body}
        return {**found, "state": "done"}

    def as_json(self, more: Mapping[str, bytes] | None = None) -> bytes:
        """Its state as JSON, with the result as the program gave it, and `more`, which is JSON."""
        state = self.state()
        parts = {name: encoded(value) for name, value in state.items()}
        if state["state"] == "done":
            parts["result"] = raw(self.process.ending().text)
        rows = (b'"%s":%s' % (name.encode(), value) for name, value in {**parts, **(more or {})}.items())
        return b"{%s}" % b",".join(rows)


class Runs:
    """The runs that this door has launched."""

    def __init__(self, tenants: Tenants, meter: Meter, metrics: Metrics) -> None:
        self._tenants = tenants
        self._metrics = metrics
        self._meter = meter
        self._runs: dict[str, Run] = {}
        self._num_coming: Counter[str] = Counter()
        """Launches under way, by tenant."""
        self._by_key: dict[OwnKey, tuple[bytes, asyncio.Future[Run]]] = {}
        self._watching: asyncio.Task[None] | None = None

    def named(self, run_id: str, caller: Caller) -> Run:
        """A run that the caller may see.  Raises HttpProblem 404."""
        run = self._runs.get(run_id)
        if run is None or not run.is_seen_by(caller):
            raise HttpProblem(404, f"there is no run {run_id[:100]!r}, or it is kept no longer", code="not_found")
        return run

    def seen_by(self, caller: Caller) -> list[Run]:
        """The runs that the caller may see, in the order in which they were launched."""
        return [run for run in self._runs.values() if run.is_seen_by(caller)]

    # --- launches ------------------------------------------------------------------------------

    async def run_for(self, caller: Caller, key: str, name: str, body: Mapping[str, Any], wanted: Wanted) -> Run:
        """A new run; or, of a key that was given before, the run that it has.  Raises HttpProblem 409, 400."""
        if not key:
            return await self.new(caller, name, wanted)
        if len(key) > 256:
            raise HttpProblem(400, f"an idempotency key has at most 256 characters; given {len(key)}")
        asked = await off_loop(_digest, name, body)
        mine = caller.tenant, caller.user, key
        known = self._by_key.get(mine)
        if known is None:
            known = self._by_key[mine] = asked, asyncio.ensure_future(self.new(caller, name, wanted, mine))
            known[1].add_done_callback(lambda done: self._forget_failed(mine, done))
        if known[0] != asked:
            raise HttpProblem(409, f"the idempotency key {shown(key)} was given for another request", code="conflict")
        return await asyncio.shield(known[1])

    def _forget_failed(self, key: OwnKey, launched: asyncio.Future[Run]) -> None:
        """A launch that failed may be tried again."""
        if launched.cancelled() or launched.exception() is not None:
            known = self._by_key.get(key)
            if known is not None and known[1] is launched:
                del self._by_key[key]

    async def new(self, caller: Caller, name: str, wanted: Wanted, key: OwnKey | None = None) -> Run:
        """Launch one.  Raises PierayError; HttpProblem 429 (the tenant has too many), 403 (no such priority)."""
        self._make_room(caller.tenant)
        self._num_coming[caller.tenant] += 1
        try:
            engine = await self._tenants.engine_of(caller)
            check_priority(caller, wanted.options.get("priority", 0))
            process = await engine.alaunch(embedded(name) or name, wanted.input, attached=True, **wanted.options)
            run = self._runs[process.id] = Run(process, name, caller, wanted.keep_s, key, left_at=_now())
        finally:
            self._num_coming[caller.tenant] -= 1
        self._meter.watch(process, caller)
        self._metrics.launched(process.name)
        if self._watching is None:
            self._watching = asyncio.ensure_future(self._watch())
        self.come(run)  # whoever launches it waits for it, until it has its messages
        try:
            for file_name, data in wanted.files:
                await process.asend_file(file_name, data)
            for message in wanted.messages:
                await process.asend(message)
        except Cancelled:
            pass  # it has ended, and how is the answer
        except BaseException:
            self._forget(run)
            if not run.ended_at:
                kill_soon(process)
            raise
        finally:
            run.num_readers -= 1
            run.left_at = _now()
        return run

    # --- readers -------------------------------------------------------------------------------

    def come(self, run: Run) -> None:
        """One more reads the run."""
        run.num_readers += 1

    def leave(self, run: Run) -> None:
        """One less does: a run that is not to be kept ends with its last reader."""
        run.num_readers -= 1
        run.left_at = _now()
        if not run.num_readers and not run.keep_s and not run.process.is_done:
            self._kill_soon(run)

    # --- how long they are kept ----------------------------------------------------------------

    async def _watch(self) -> None:
        """Look after the runs as long as there are any."""
        try:
            while self._runs:
                await asyncio.sleep(WATCH_S)
                for run in list(self._runs.values()):
                    try:
                        self._look_after(run)
                    except Exception:
                        log.exception("run %s is not looked after", run.process.id)
                self._bound_bytes()
        finally:
            self._watching = None

    def _look_after(self, run: Run) -> None:
        """End a run that nobody has read for as long as it is kept, and forget one that ended long ago."""
        now = _now()
        if run.process.is_done:
            if not run.ended_at:
                self._note_end(run, now)
            if now - run.ended_at > KEPT_S and not run.num_readers:
                self._forget(run)
        elif (
            not run.num_readers
            and now - run.left_at > max(run.keep_s, LEAST_KEEP_S)
            and now - run.killed_at > KILL_AGAIN_S
        ):
            self._kill_soon(run)

    def _note_end(self, run: Run, now: float) -> None:
        """Once: its events will be no more."""
        run.ended_at = now
        run.num_bytes = sum(len(event.text) for event in run.process.seen())
        try:
            run.process.ending()
        except Cancelled:
            pass
        except PierayError as error:  # with the traceback, which clients are not told
            about = run.process.id, run.program, error.code, error.message
            log.warning(
                "run %s of %s: %s: %s", *about, extra=dict(zip(("run", "program", "code"), about, strict=False))
            )

    def _kill_soon(self, run: Run) -> None:
        """End a run that nobody waits for; whoever comes with its key again gets a new one."""
        run.killed_at = _now()
        self._drop_key(run)
        kill_soon(run.process)

    def _ended_of(self, tenant: str) -> list[Run]:
        """Runs of a tenant that may be forgotten, the first that ended first."""
        found = (run for run in self._runs.values() if run.caller.tenant == tenant)
        ended = [run for run in found if run.process.is_done and not run.num_readers]
        return sorted(ended, key=lambda run: run.ended_at or math.inf)

    def _make_room(self, tenant: str) -> None:
        """Forget the tenant's run that ended first, if it has too many; raises HttpProblem 429 if all of them run."""
        known = sum(run.caller.tenant == tenant for run in self._runs.values())
        if known + self._num_coming[tenant] < MOST_KEPT:
            return
        ended = self._ended_of(tenant)
        if not ended:
            raise HttpProblem(
                429, f"a tenant has at most {MOST_KEPT} runs at one time", code="overloaded", retry_after_s=1.0
            )
        self._forget(ended[0])

    def _bound_bytes(self) -> None:
        """Forget runs of tenants whose ended ones hold too much, the first that ended first; the last one stays."""
        held = Counter[str]()
        for run in self._runs.values():
            held[run.caller.tenant] += run.num_bytes
        for tenant, size in held.items():
            excess = size - MOST_KEPT_BYTES
            for run in self._ended_of(tenant)[:-1] if excess > 0 else ():
                self._forget(run)
                excess -= run.num_bytes
                if excess <= 0:
                    break

    def _forget(self, run: Run) -> None:
        if self._runs.pop(run.process.id, None) is not None and run.process.is_done and not run.ended_at:
            self._note_end(run, _now())
        self._drop_key(run)

    def _drop_key(self, run: Run) -> None:
        """Its idempotency key, if that is still its own."""
        known = self._by_key.get(run.key) if run.key is not None else None
        if known is None or run.key is None:
            return
        launched = known[1]
        if launched.done() and not launched.cancelled() and not launched.exception() and launched.result() is run:
            del self._by_key[run.key]


def _digest(name: str, body: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps([name, body], sort_keys=True).encode()).digest()


def _now() -> float:
    return asyncio.get_running_loop().time()
