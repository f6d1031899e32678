from __future__ import annotations

import threading
import time

import pytest

from pieray.concurrency.timers import Timers
from pieray.wasm.ticker import Load, Ticker


@pytest.fixture
def timers():
    timers = Timers()
    yield timers
    timers.close()


def test_timers_fire_in_order(timers):
    fired, done = [], threading.Event()
    now = time.monotonic()
    timers.at(now + 0.06, done.set)
    timers.at(now + 0.04, lambda: fired.append("b"))
    timers.at(now + 0.02, lambda: fired.append("a"))
    assert done.wait(2)
    assert fired == ["a", "b"]
    assert len(timers) == 0


def test_a_cancelled_timer_does_not_fire_and_leaves_the_heap(timers):
    fired = []
    far = [timers.at(time.monotonic() + 100, lambda: fired.append(1)) for _ in range(10)]
    near = timers.at(time.monotonic() + 0.02, lambda: fired.append(2))
    near.cancel()
    for timer in far:
        timer.cancel()
        timer.cancel()
    time.sleep(0.05)
    assert fired == []
    assert len(timers) == 0


class Panic(BaseException):
    """As that of native code: no Exception."""


@pytest.mark.parametrize("failure", [RuntimeError, Panic])
def test_a_callback_that_fails_does_not_stop_the_others(timers, failure):
    done = threading.Event()

    def fail():
        raise failure

    timers.at(time.monotonic(), fail)
    timers.at(time.monotonic() + 0.01, done.set)
    assert done.wait(2)


def test_the_ticker_ticks_only_for_overdue_turns_and_sleeps_when_idle():
    ticks, load = [], [Load.BUSY]
    ticker = Ticker(lambda: ticks.append(1), lambda: load[0], slice_s=0.001)
    ticker.IDLE_TICKS = 5
    try:
        time.sleep(0.05)
        assert ticks == []
        assert not ticker.is_asleep
        load[0] = Load.OVERDUE
        wait_until(lambda: len(ticks) > 3)
        load[0] = Load.IDLE
        wait_until(lambda: ticker.is_asleep)
        count = len(ticks)
        load[0] = Load.OVERDUE
        ticker.wake()
        time.sleep(0.05)
        assert len(ticks) > count
    finally:
        ticker.close()


def test_the_ticker_outlives_a_failure():
    ticks, failures = [], [Panic(), RuntimeError()]

    def load():
        if failures:
            raise failures.pop()
        return Load.OVERDUE

    ticker = Ticker(lambda: ticks.append(1), load, slice_s=0.001)
    try:
        wait_until(lambda: len(ticks) > 3)
    finally:
        ticker.close()


def test_an_interrupt_ticks_at_once_and_again_while_it_is_urgent():
    """The slice is ten minutes long."""
    ticks, load = [], [Load.URGENT]
    ticker = Ticker(lambda: ticks.append(1), lambda: load[0], slice_s=600.0)
    try:
        ticker.interrupt()
        assert ticks
        wait_until(lambda: len(ticks) > 3)
        load[0] = Load.BUSY
        time.sleep(0.02)
        so_far = len(ticks)
        time.sleep(0.02)
        assert len(ticks) <= so_far + 1
    finally:
        ticker.close()


def wait_until(condition, timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
