"""When a process stood still, as its own ticks tell, and the clocks of others, as their answers tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pieray.concurrency import pulse, stalls
from pieray.concurrency.pulse import Pulse, PulsedLock
from pieray.concurrency.stalls import STALL_S, RemoteClock, Stalls

NOW = 100.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (stalls, pulse):
        monkeypatch.setattr(module, "time", found)
    return found


def test_what_was_sent_before_or_during_a_stall_is_refused_whoever_wakes_first(clock: Clock) -> None:
    watch = Stalls()
    clock.now += 0.25
    assert watch.tick() == 0.0
    sent_before, sent_during = clock.now, clock.now + 30
    clock.now += 60  # frozen
    assert watch.is_since(sent_before)  # a thread that carries it out before the next tick
    assert watch.is_since(sent_during)
    assert watch.tick() == 60.0
    assert watch.is_since(sent_before)  # and one that does so behind it, however late
    assert watch.is_since(sent_during)
    clock.now += 0.25
    assert watch.tick() == 0.0
    assert not watch.is_since(clock.now)


def test_a_busy_process_is_not_a_stalled_one(clock: Clock) -> None:
    watch = Stalls()
    for _ in range(10):
        clock.now += STALL_S
        assert watch.tick() == 0.0
    assert not watch.is_since(NOW)


def test_the_other_clock_is_never_taken_to_be_ahead(clock: Clock) -> None:
    remote = RemoteClock()
    assert remote.age_s == float("inf")
    told = 5000.0  # and then the answer travels for 2 s
    clock.now += 2
    remote.update(told)
    clock.now += 10
    assert remote.at(clock.now) == told + 10 <= told + 12
    assert remote.age_s == 10


def test_a_pulse_tells_how_long_a_turn_takes(clock: Clock) -> None:
    beat = Pulse()
    clock.now += 50
    assert beat.busy_s == 0
    beat.begin()
    clock.now += 3
    assert beat.busy_s == 3
    beat.end()
    assert beat.busy_s == 0


def test_a_lock_tells_how_long_it_is_held_and_serves_a_condition() -> None:
    lock = PulsedLock()
    changed = threading.Condition(lock)  # type: ignore[arg-type]
    seen: list[Any] = []

    def wait() -> None:
        with changed:
            seen.append(changed.wait_for(lambda: "go" in seen, 30))

    waiter = threading.Thread(target=wait)
    waiter.start()
    with lock:
        assert not lock.acquire(blocking=False)
        until(lambda: lock.busy_s > 0)
    until(lambda: lock.busy_s == 0)  # also while somebody waits under it
    with changed:
        seen.append("go")
        changed.notify_all()
    waiter.join(30)
    assert seen == ["go", True]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
