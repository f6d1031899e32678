"""WIT interface `runtime`."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time

from pieray.host.device.tickets import Kind
from pieray.host.handlers.base import HandlerGroup
from pieray.host.state import InstanceState
from pieray.wit import api


class RuntimeHandlers(HandlerGroup):
    """Identity, clocks, randomness, limits, log."""

    def __init__(self, state: InstanceState) -> None:
        super().__init__(state)
        self._random: random.Random | None = None

    def version(self) -> str:
        return api().version

    def instance_id(self) -> str:
        return self._state.instance_id

    def program(self) -> str:
        launch = self._state.launch
        return f"{launch.name}@{launch.version}" if launch.version else launch.name

    def user(self) -> str:
        return self._state.launch.user

    def tenant(self) -> str:
        return self._state.launch.tenant

    def parent(self) -> str:
        return self._state.launch.parent

    def input(self) -> str:
        return self._state.launch.input

    def capabilities(self) -> str:
        return json.dumps(dataclasses.asdict(self._state.capabilities))

    def limits(self) -> str:
        state = self._state
        used = {
            "pages": state.pages.num_handles,
            "queues": len(state.queues),
            "tickets": len(state.tickets),
            "log_bytes": state.log.log_bytes,
            "output_bytes": state.log.output_bytes,
            "scratch_bytes": state.scratch.num_bytes,
        }
        return json.dumps({"limits": dataclasses.asdict(state.limits), "used": used})

    def usage(self) -> str:
        with self._state.lock:
            return json.dumps(self._state.outbox.usage())

    def monotonic_now(self) -> int:
        return time.monotonic_ns()

    def wall_now(self) -> int:
        return time.time_ns()

    def sleep(self, ms: int) -> int:
        state = self._state
        ticket = state.begin(Kind.NONE)
        timer = state.services.timers.at(time.monotonic() + ms / 1e3, lambda: state.complete(ticket, None))
        state.on_cancel(ticket, timer.cancel)
        return ticket

    def random_u64(self) -> int:
        if self._random is not None:
            return self._random.getrandbits(64)
        return int.from_bytes(os.urandom(8), "little")

    def seed(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret

    def log(self, level: str, message: str) -> None:
        self._state.log.log(level, message)
