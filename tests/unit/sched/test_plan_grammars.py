"""Grammars of plans are compiled off the step thread, in turns of tenants."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from test_plans_core import Desk, start

from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.sched import running_plans

WAIT_S = 30.0


class Compiling:
    """A batcher's plans whose grammars are all refused: those of the tenant "greedy" not before `release`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.desk = Desk()
        self.later: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self.desk.core.plans.call_later = self.later.put
        self.release = threading.Event()
        self.compiled: list[tuple[str, str]] = []
        monkeypatch.setattr(self.desk.core.plans, "_compile", self._compile)

    def _compile(self, grammar: list[Any]) -> object:
        _, text, _, tenant = grammar
        self.compiled.append((tenant, text))
        if tenant == "greedy":
            assert self.release.wait(WAIT_S)
        return InvalidRequest("compiled, and refused: the plan ends at once")

    def begin(self, ticket: int, tenant: str, text: str) -> None:
        plan = start(ticket, [ticket], [5], 2, inferlet=ticket)
        self.desk.submit(replace(plan, grammar=["regex", text, b"", tenant]))

    def await_end(self, ticket: int) -> object:
        end = time.monotonic() + WAIT_S
        while ticket not in self.desk.ends:
            assert time.monotonic() < end, "the plan did not end"
            with contextlib.suppress(queue.Empty):
                self.desk.note(self.later.get(timeout=0.01)())
            self.desk.step()
        return self.desk.ends[ticket]


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch):
    compiling = Compiling(monkeypatch)
    yield compiling
    compiling.release.set()
    compiling.desk.core.plans.close()


def test_grammars_of_one_tenant_hold_up_no_other(compiling: Compiling):
    for ticket in range(1, 41):
        compiling.begin(ticket, "greedy", f"g{ticket}")
    compiling.begin(50, "modest", "m")
    assert compiling.await_end(50) == "invalid"
    assert [tenant for tenant, _ in compiling.compiled].count("greedy") <= running_plans.COMPILERS - 1
    compiling.release.set()
    assert compiling.await_end(1) == compiling.await_end(40) == "invalid"


def test_more_plans_than_may_wait_are_refused_and_run_on_for_others(
    compiling: Compiling, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiling.desk.core.plans._pool, "_max_waiting", 3)
    for ticket in range(1, 6):
        compiling.begin(ticket, "greedy", "g")
        end = time.monotonic() + WAIT_S
        while ticket == 1 and not compiling.compiled:  # the first has a thread, the others wait
            assert time.monotonic() < end
            time.sleep(0.001)
    assert compiling.desk.ends == {5: QuotaExceeded.code}
    compiling.begin(6, "modest", "m")
    assert compiling.await_end(6) == "invalid"


def test_a_plan_that_waits_too_long_for_its_grammar_fails(compiling: Compiling, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running_plans, "COMPILE_WAIT_S", 0.05)
    compiling.begin(1, "greedy", "g1")
    compiling.begin(2, "greedy", "g2")
    assert compiling.await_end(2) == "deadline"
    compiling.release.set()
    assert compiling.await_end(1) == "invalid"
