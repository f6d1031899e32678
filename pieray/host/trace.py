"""The trace of one inferlet: what it has called, when it waited, when the device has answered.

Only an inferlet that is traced has one.  Its handlers are wrapped then, and nothing is done for any other.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from pieray.arrays import U32
from pieray.errors import DeviceLost, NotFound, PierayError
from pieray.host.device.device_user import DeviceUser
from pieray.host.handlers import GuestHandlers
from pieray.messages import RunTokens
from pieray.wasm.parks import Later

MOST_SPANS = 20_000
"""Of one inferlet; what comes later is only counted."""
UNTRACED = frozenset({"printed"})
UNTRACED_CALLS = frozenset({"runtime.monotonic_now", "runtime.wall_now", "runtime.random_u64"})
"""What the guest's libc calls by itself, all the time."""

Span = tuple[str, float, float, str]
"""Name, Unix times of its begin and end, and the code of the error that it ended with, or ""."""


class Trace:
    """Thread-safe.  `parent`: the W3C traceparent of who has launched it, at the Unix time `launched_at`."""

    def __init__(self, parent: str, launched_at: float) -> None:
        self._parent = parent
        self._launched_at = launched_at
        self.ran_at = 0.0
        """Unix time at which its guest was ready to run."""
        self._spans: list[Span] = []
        self._answers: list[tuple[float, int, int]] = []
        self._num_dropped = 0
        self._lock = threading.Lock()

    def add(self, name: str, began: float, ended: float, error: str = "") -> None:
        """Something took `[began, ended)`, in Unix time."""
        with self._lock:
            if len(self._spans) < MOST_SPANS:
                self._spans.append((name, began, ended, error))
            else:
                self._num_dropped += 1

    def answered(self, num_tickets: int, num_tokens: int) -> None:
        """Answers of the device have come, to so many commands, with so many tokens of plans."""
        with self._lock:
            if len(self._answers) < MOST_SPANS:
                self._answers.append((time.time(), num_tickets, num_tokens))
            else:
                self._num_dropped += 1

    def facts(self) -> dict[str, Any]:
        """What is known so far: `calls`, `answers` (of the device: time, commands, tokens of plans), num_dropped."""
        with self._lock:
            calls = [dict(zip(("name", "began", "ended", "error"), span, strict=True)) for span in self._spans]
            answers = [dict(zip(("at", "commands", "tokens"), one, strict=True)) for one in self._answers]
            dropped = self._num_dropped
        return {
            "traceparent": self._parent,
            "launched_at": self._launched_at,
            "ran_at": self.ran_at,
            "calls": calls,
            "answers": answers,
            "num_dropped": dropped,
        }


def trace_of(trace: Trace | None, status: Mapping[str, Any]) -> dict[str, Any]:
    """`Trace.facts` of an inferlet beside those of its status; raises NotFound if it is not traced."""
    if trace is None:
        name = status["instance_id"]
        raise NotFound(f"{name} is not traced: its launch asks for that, or the setting trace_share of the engine")
    return {**status, **trace.facts()}


def traced_handlers(handlers: GuestHandlers, trace: Trace) -> Any:
    """The same handlers, each call of which is a span of the trace."""
    found = {field.name: getattr(handlers, field.name) for field in dataclasses.fields(handlers)}
    made: dict[str, Any] = {
        name: one if name in UNTRACED else _TracedInterface(name, one, trace) for name, one in found.items()
    }
    made["tickets"] = _TracedTickets("tickets", handlers.tickets, trace)
    return SimpleNamespace(**made)


class _TracedInterface:
    """An interface of the WIT whose methods are wrapped as they are first called."""

    def __init__(self, name: str, interface: Any, trace: Trace) -> None:
        self._name = name
        self._interface = interface
        self._trace = trace

    def __getattr__(self, name: str) -> Any:
        method, called = getattr(self._interface, name), f"{self._name}.{name}"
        made = method if called in UNTRACED_CALLS else _traced(called, method, self._trace)
        self.__dict__[name] = made
        return made


class _TracedTickets(_TracedInterface):
    """`tickets.wait`, which the wasm layer makes of `flush` and `ready`, is one span from the one to the other."""

    def __init__(self, name: str, interface: Any, trace: Trace) -> None:
        super().__init__(name, interface, trace)
        self._began = 0.0  # of a wait under way
        self._looked = 0.0  # when that was last asked, and had nothing

    def flush(self) -> None:
        if self._began:  # the last wait ended at its time, with nothing
            self._trace.add("tickets.wait", self._began, self._looked, "deadline")
        self._began = self._looked = time.time()
        self._interface.flush()

    def ready(self, tickets: U32) -> list[int]:
        began = time.time()
        found: list[int] = self._interface.ready(tickets)
        if not self._began:
            self._trace.add("tickets.ready", began, time.time())
        elif found:
            self._trace.add("tickets.wait", self._began, time.time())
            self._began = 0.0
        else:
            self._looked = began
        return found


def _traced(name: str, method: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        began = time.time()
        try:
            value = method(*args)
        except PierayError as error:
            trace.add(name, began, time.time(), error.code)
            raise
        if isinstance(value, Future):  # it is worked on elsewhere, and the guest waits
            value.add_done_callback(lambda _: trace.add(name, began, time.time()))
        elif isinstance(value, Later):
            return _traced_later(value, lambda error: trace.add(name, began, time.time(), error))
        else:
            trace.add(name, began, time.time())
        return value

    return call


def _traced_later(later: Later, ended: Callable[[str], None]) -> Later:
    def told(call: Callable[[], Any], *, is_last: bool) -> Callable[[], Any]:
        def look() -> Any:
            try:
                value = call()
            except PierayError as error:
                ended(error.code)
                raise
            if is_last or value is not None:
                ended("")
            return value

        return look

    return Later(told(later.look, is_last=False), told(later.give_up, is_last=True), later.deadline)


class TracedUser:
    """An inferlet as the device client sees it, whose answers are noted."""

    def __init__(self, inferlet: DeviceUser, trace: Trace) -> None:
        self._inferlet = inferlet
        self._trace = trace

    def answered(self, answers: Sequence[tuple[int, object]]) -> None:
        num_tokens = sum(len(result.tokens) // 4 for _, result in answers if isinstance(result, RunTokens))
        self._trace.answered(len(answers), num_tokens)
        self._inferlet.answered(answers)

    def granted(self, pages: list[int], num_found: int) -> None:
        self._inferlet.granted(pages, num_found)

    def lease_failed(self, error: PierayError) -> None:
        self._inferlet.lease_failed(error)

    def ledger_answered(self, ticket: int, result: object) -> None:
        self._inferlet.ledger_answered(ticket, result)

    def device_lost(self, error: DeviceLost) -> None:
        self._inferlet.device_lost(error)

    def reclaim(self) -> list[int]:
        return self._inferlet.reclaim()

    def is_idle(self, now: float) -> bool:
        return self._inferlet.is_idle(now)

    def preempt(self, kept: Sequence[int], shared: Sequence[int]) -> None:
        at = time.time()
        self._trace.add("pages are given up", at, at)
        self._inferlet.preempt(kept, shared)
