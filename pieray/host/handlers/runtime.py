"""WIT interface `runtime`, and what the guest prints."""

from __future__ import annotations

import codecs
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
        self._printed = {fd: _Lines() for fd in (1, 2)}

    def runtime_version(self) -> str:
        return api().version

    def runtime_instance_id(self) -> str:
        return self._state.instance_id

    def runtime_program(self) -> str:
        launch = self._state.launch
        return f"{launch.name}@{launch.version}" if launch.version else launch.name

    def runtime_user(self) -> str:
        return self._state.launch.user

    def runtime_tenant(self) -> str:
        return self._state.launch.tenant

    def runtime_parent(self) -> str:
        return self._state.launch.parent

    def runtime_input(self) -> str:
        return self._state.launch.input

    def runtime_capabilities(self) -> str:
        return json.dumps(dataclasses.asdict(self._state.capabilities))

    def runtime_limits(self) -> str:
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

    def runtime_usage(self) -> str:
        with self._state.lock:
            return json.dumps(self._state.outbox.usage())

    def runtime_monotonic_now(self) -> int:
        return time.monotonic_ns()

    def runtime_wall_now(self) -> int:
        return time.time_ns()

    def runtime_sleep(self, ms: int) -> int:
        state = self._state
        ticket = state.begin(Kind.NONE)
        timer = state.services.timers.at(time.monotonic() + ms / 1e3, lambda: state.complete(ticket, None))
        state.on_cancel(ticket, timer.cancel)
        return ticket

    def runtime_random_u64(self) -> int:
        if self._random is not None:
            return self._random.getrandbits(64)
        return int.from_bytes(os.urandom(8), "little")

    def runtime_seed(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret

    def runtime_log(self, level: str, message: str) -> None:
        self._state.log.log(level, message)

    def stdout(self, fd: int, text: bytes) -> None:
        """What the guest writes to its standard output (1) and error (2), as log lines."""
        level = "info" if fd == 1 else "warning"
        for line in self._printed[1 if fd == 1 else 2].feed(text):
            self._state.log.log(level, line)

    def stdout_end(self) -> None:
        """Log what was printed without a newline; called when the guest has ended."""
        for fd, lines in self._printed.items():
            if rest := lines.rest():
                self._state.log.log("info" if fd == 1 else "warning", rest)


class _Lines:
    """Bytes to whole lines of text."""

    MAX_LINE = 8192

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    def feed(self, data: bytes) -> list[str]:
        self._text += self._decoder.decode(data)
        *lines, self._text = self._text.split("\n")
        if len(self._text) > self.MAX_LINE:
            lines.append(self._text)
            self._text = ""
        return lines

    def rest(self) -> str:
        text, self._text = self._text, ""
        return text
