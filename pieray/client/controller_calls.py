"""Calls to the Controller: short deadlines while it is silent, and launches that never start once they are given up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from pieray.concurrency.stalls import RemoteClock
from pieray.errors import NoAnswer, PierayError, Stalled

SILENT_S, PING_S = 3.0, 5.0
"""A Controller that has not answered for the first is asked whether it lives, and has the second to say so."""
CLOCK_AGE_S = 60.0
"""Its clock is asked for again after so long: clocks drift."""

Begin: TypeAlias = Callable[..., Callable[[float], Any]]
"""`begin(method, *args)` makes a call; what it returns waits so many seconds for the answer, then raises NoAnswer."""


class ControllerCalls:
    """Thread-safe.  `begin` is `pieray.cluster.ray_calls.asker` of a handle, or a socket's equivalent."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._clock = RemoteClock()

    def ask(self, method: str, *args: Any, timeout_s: float) -> Any:
        """The answer of a method, awaited for `timeout_s` at most.

        Raises what the method does, ActorGone, and NoAnswer: also as soon as the Controller does not even say that it
        lives, SILENT_S + PING_S from the call.
        """
        answer = self._begin(method, *args)
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            try:
                return answer(min(left_s, SILENT_S))
            except NoAnswer:
                if left_s <= SILENT_S:
                    raise NoAnswer(f"the engine did not answer {method} within {timeout_s:.3g} s") from None
            self.ping()

    def tell(self, method: str, *args: Any) -> None:
        """Call a method, and wait for nothing; a Controller that is gone is not told."""
        with contextlib.suppress(PierayError):
            self._begin(method, *args)(0.0)

    def ping(self) -> None:
        """Raises NoAnswer for a Controller that does not say that it lives, ActorGone."""
        try:
            self._clock.update(self._begin("ping")(PING_S))
        except NoAnswer:
            raise NoAnswer(
                f"the engine's Controller does not answer, for {PING_S:.0f} s now: it is frozen or out of "
                "reach; what runs goes on without it"
            ) from None

    def launch(self, frame: bytes, timeout_s: float) -> Any:
        """Place and start an inferlet; the endpoint of its actor.

        When this raises NoAnswer, the inferlet does not start any more, and if it has just started, it is ended.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self._clock.age_s > CLOCK_AGE_S:
                self.ping()
            now = time.monotonic()
            times = self._clock.at(now), self._clock.at(deadline)
            try:
                return self.ask("launch", frame, *times, timeout_s=max(0.0, deadline - now) + SILENT_S)
            except Stalled:  # it woke up with the launch in its queue, and has not carried it out
                if time.monotonic() > deadline:
                    raise
                self.ping()
