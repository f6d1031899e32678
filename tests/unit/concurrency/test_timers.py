"""Timers fire once, in order, on time, however many are cancelled meanwhile, and their thread sleeps till then."""

import random
import threading
import time
from collections.abc import Iterator

import pytest

from pieray.concurrency.timers import Timers


@pytest.fixture
def timers() -> Iterator[Timers]:
    timers = Timers()
    yield timers
    timers.close()


@pytest.mark.parametrize("seed", range(4))
def test_what_is_not_cancelled_fires_once_and_in_order(timers: Timers, seed: int) -> None:
    rng = random.Random(seed)
    fired: list[tuple[float, float]] = []
    wanted = []
    for _ in range(300):
        when = time.monotonic() + rng.uniform(0.0, 0.3)
        timer = timers.at(when, lambda when=when: fired.append((when, time.monotonic())))  # type: ignore[misc]
        if rng.random() < 0.7:
            timer.cancel()
        else:
            wanted.append(when)
        if rng.random() < 0.1:
            time.sleep(0.002)
    time.sleep(0.4)
    assert sorted(when for when, _ in fired) == sorted(wanted)
    late = sorted(at - when for when, at in fired)
    assert late[0] >= 0.0
    assert late[len(late) // 2] < 0.1


def test_a_timer_that_is_set_and_cancelled_over_and_over_wakes_the_thread_once(
    timers: Timers, monkeypatch: pytest.MonkeyPatch
) -> None:
    fired = threading.Event()
    wakes = []
    notify = timers._changed.notify
    monkeypatch.setattr(timers._changed, "notify", lambda n=1: (wakes.append(n), notify(n)))
    timers.at(time.monotonic() + 600.0, fired.set)
    for _ in range(500):
        timers.at(time.monotonic() + 5.0, fired.set).cancel()
    assert len(wakes) <= 2
    timers.at(time.monotonic() + 0.05, fired.set)
    assert fired.wait(2.0), "one that is earlier than all of them is on time"
    assert len(wakes) == 3


def test_a_callback_that_fails_ends_nobody_elses_timer(timers: Timers) -> None:
    fired = threading.Event()

    def fails() -> None:
        raise KeyboardInterrupt

    timers.at(time.monotonic(), fails)
    timers.at(time.monotonic() + 0.02, fired.set)
    assert fired.wait(2.0)
