"""WIT interface `runtime`."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time

from pieray.concurrency.timers import Timers
from pieray.host.device.model_side import ModelSides
from pieray.host.identity import Identity
from pieray.host.session.scratch import ScratchFolder
from pieray.host.session.session import EventLog
from pieray.host.tables import HandleTables
from pieray.host.ticket_work import TicketWork
from pieray.host.tickets import Kind
from pieray.wit import api


class RuntimeHandlers:
    """Identity, clocks, randomness, limits, log."""

    def __init__(
        self,
        identity: Identity,
        tables: HandleTables,
        sides: ModelSides,
        log: EventLog,
        scratch: ScratchFolder,
        timers: Timers,
        work: TicketWork,
    ) -> None:
        self._identity = identity
        self._launch = identity.launch
        self._tables = tables
        self._sides = sides
        self._log = log
        self._scratch = scratch
        self._timers = timers
        self._work = work
        self._random: random.Random | None = None

    def version(self) -> str:
        return api().version

    def instance_id(self) -> str:
        return self._launch.instance_id

    def program(self) -> str:
        launch = self._launch
        return f"{launch.name}@{launch.version}" if launch.version else launch.name

    def user(self) -> str:
        return self._launch.user

    def tenant(self) -> str:
        return self._launch.tenant

    def parent(self) -> str:
        return self._launch.parent

    def input(self) -> str:
        return self._launch.input

    def capabilities(self) -> str:
        return json.dumps(dataclasses.asdict(self._identity.capabilities))

    def limits(self) -> str:
        used = {
            "pages": self._sides.num_handles,
            "queues": len(self._tables.queues),
            "tickets": len(self._work.tickets),
            "log_bytes": self._log.log_bytes,
            "output_bytes": self._log.output_bytes,
            "scratch_bytes": self._scratch.num_bytes,
        }
        return json.dumps({"limits": dataclasses.asdict(self._identity.limits), "used": used})

    def usage(self) -> str:
        with self._work.tickets.lock:
            return json.dumps(self._sides.usage())

    def monotonic_now(self) -> int:
        return time.monotonic_ns()

    def wall_now(self) -> int:
        return time.time_ns()

    def sleep(self, ms: int) -> int:
        ticket = self._work.begin(Kind.NONE)
        timer = self._timers.at(time.monotonic() + ms / 1e3, lambda: self._work.complete(ticket, None))
        self._work.on_cancel(ticket, timer.cancel)
        return ticket

    def random_u64(self) -> int:
        if self._random is not None:
            return self._random.getrandbits(64)
        return int.from_bytes(os.urandom(8), "little")

    def seed(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret

    def log(self, level: str, message: str) -> None:
        self._log.log(level, message)
