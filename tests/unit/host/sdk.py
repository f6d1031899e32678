"""The guest SDK in plain CPython over the real handlers of one inferlet: no wasm, no processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from fakes import Bench

from inferlet import _host, _raw
from inferlet._loop import TicketLoop
from pieray.errors import PierayError

TIMEOUT_S = 20.0


class SdkBench(Bench):
    """A Bench whose handlers serve the SDK; `run` is what a guest's main would be run by."""

    def __init__(self, **options: Any) -> None:
        self._woken = threading.Event()
        super().__init__(**options)
        _host.install(self._interfaces())

    def wake(self) -> None:
        self._woken.set()

    def run(self, coroutine: Any) -> Any:
        loop = TicketLoop()
        try:
            return loop.run_until_complete(coroutine)
        finally:
            loop.close()

    def wait(self, tickets: list[int], timeout_ms: int) -> list[int]:
        """`tickets.wait`, which is the wasm host's."""
        end = time.monotonic() + (TIMEOUT_S if timeout_ms < 0 else timeout_ms / 1e3)
        self.handlers.tickets.flush()
        while not (ready := self.handlers.tickets.ready(np.array(tickets, np.uint32))):
            rest = end - time.monotonic()
            if rest <= 0:
                assert timeout_ms >= 0, f"nothing came for {tickets}"
                return []
            self._woken.wait(rest)
            self._woken.clear()
        return ready

    def close(self) -> None:
        self.parts.close()
        self.services.close()

    def _interfaces(self) -> SimpleNamespace:
        found = {name: SimpleNamespace(**self._functions(name)) for name in _host.INTERFACES}
        found["tickets"].wait = self.wait
        return SimpleNamespace(**found)

    def _functions(self, interface: str) -> dict[str, Callable[..., Any]]:
        group = getattr(self.handlers, interface)
        return {name: _bound(getattr(group, name)) for name in dir(group) if not name.startswith("_")}


def _bound(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            return method(
                *(np.array(a, np.uint32) if isinstance(a, list) and a and isinstance(a[0], int) else a for a in args)
            )
        except PierayError as error:
            code = SimpleNamespace(name=error.code.upper().replace("-", "_"))
            raise _raw.Err(SimpleNamespace(code=code, message=error.message)) from None

    return call
