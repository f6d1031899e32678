"""CohortWait: who is waited for, for how long, and what it is worth."""

import heapq

import numpy as np
import pytest

from pieray.sched.cohort import CohortWait
from pieray.sched.lanes import Registry

A, B, C = range(3)


def cohort(step_s: float = 0.010, cap_s: float = 0.004) -> CohortWait:
    wait = CohortWait(Registry(), cap_s)
    wait.stepped(-step_s, 0.0)
    return wait


def test_cap_is_the_smaller_of_the_setting_and_half_a_step():
    assert cohort(step_s=0.010).cap_s == 0.004
    assert cohort(step_s=0.002).cap_s == 0.001
    assert CohortWait(Registry(), 0.004).cap_s == 0.0  # nothing is known of steps yet


def test_waits_for_the_rest_until_the_last_is_back_or_the_cap():
    wait = cohort()
    for key in (A, B, C):
        wait.answered(key, 1.0)
    wait.arrived(A, 1.0005)
    assert wait.wait_s(1.0005) == pytest.approx(0.0035)
    wait.arrived(B, 1.001)
    assert wait.wait_s(1.001) == pytest.approx(0.003)
    wait.arrived(C, 1.002)
    assert wait.wait_s(1.002) == 0.0


def test_one_active_inferlet_is_never_kept_waiting():
    wait = cohort()
    for turn in range(5):
        wait.answered(A, float(turn))
        wait.arrived(A, turn + 0.001)
        assert wait.wait_s(turn + 0.001) == 0.0


def test_inferlet_that_does_not_come_back_costs_one_wait():
    wait = cohort()
    wait.answered(A, 1.0)
    wait.answered(B, 1.0)
    wait.arrived(A, 1.001)
    assert wait.wait_s(1.001) > 0
    assert wait.wait_s(1.004) == 0.0  # the cap; it is not asked after any more
    for turn in range(2, 5):
        wait.answered(A, float(turn))
        wait.arrived(A, turn + 0.001)
        assert wait.wait_s(turn + 0.001) == 0.0
    wait.arrived(B, 5.0)
    wait.answered(B, 5.5)
    wait.arrived(B, 5.501)  # back at decoding: one quick return is enough
    wait.answered(B, 6.0)
    assert wait.wait_s(6.001) == pytest.approx(0.003)


def test_inferlet_that_ended_is_not_waited_for():
    lanes = Registry()
    wait = CohortWait(lanes, 0.004)
    wait.stepped(-0.010, 0.0)
    numbers = np.array([lanes.open(key) for key in "abc"])
    wait.answered(numbers, 1.0)
    lanes.close("a")
    assert wait.wait_s(1.001) > 0
    for key in "bc":
        lanes.close(key)
    assert wait.wait_s(1.001) == 0.0


def test_many_that_come_back_at_once_are_as_each_by_itself():
    each, together = cohort(), cohort()
    for turn in range(4):
        at = float(turn)
        for wait in (each, together):
            wait.answered(np.array([A, B, C]), at)
        back = np.array([A, C]) if turn % 2 else np.array([B, C])
        together.arrived(back, at + 0.001)
        for lane in back.tolist():
            each.arrived(lane, at + 0.001)
        assert each.wait_s(at + 0.002) == together.wait_s(at + 0.002)
        assert each.wait_s(at + 0.9) == together.wait_s(at + 0.9) == 0.0


def test_arrival_hidden_by_a_running_step_regains_trust_slowly():
    wait = cohort()
    wait.answered(A, 1.0)
    wait.wait_s(1.1)  # missed
    for turn in (2.0, 3.0):
        wait.answered(A, turn)
        assert wait.wait_s(turn) == 0.0
        wait.stepped(turn, turn + 0.010)
        wait.arrived(A, turn + 0.010)
    wait.answered(A, 4.0)
    assert wait.wait_s(4.0) == pytest.approx(0.004)


def simulate(cap_s: float, num: int, think_s: float, idle: int = 0, until_s: float = 2.0) -> tuple[float, float]:
    """(mean batch, answers per second) of `num` inferlets that ask again after [1, 2) * think_s, a step of 5 ms plus
    30 us for each, and `idle` more inferlets that come back after 200 ms."""
    lanes = Registry()
    for key in range(num + idle):
        lanes.open(key)
    wait = CohortWait(lanes, cap_s)
    arrivals = [(i * 0.0007, i) for i in range(num + idle)]
    now, ready, steps, answers = 0.0, [], 0, 0
    while now < until_s:
        while arrivals and arrivals[0][0] <= now:
            at, key = heapq.heappop(arrivals)
            wait.arrived(key, at)
            ready.append(key)
        if not ready:
            now = arrivals[0][0]
            continue
        if (pause := wait.wait_s(now)) > 0:
            now = min(now + pause, arrivals[0][0] if arrivals else now + pause) + 1e-7
            continue
        began, now = now, now + 0.005 + 3e-5 * len(ready)
        wait.stepped(began, now)
        steps, answers = steps + 1, answers + len(ready)
        for key in ready:
            wait.answered(key, now)
            delay = think_s * (1 + (key * 7919 % 100) / 100) if key < num else 0.2
            heapq.heappush(arrivals, (now + delay, key))
        ready = []
    return answers / steps, answers / now


def test_simulation_waiting_fills_the_batch_and_serves_more():
    alone, together = simulate(0.0, 64, 0.001), simulate(0.004, 64, 0.001)
    print(
        f"64 inferlets, 1-2 ms away: batch {alone[0]:.1f} -> {together[0]:.1f}, {alone[1]:.0f} -> {together[1]:.0f}/s"
    )
    assert alone[0] < 40
    assert together[0] > 60
    assert together[1] > 1.1 * alone[1]


def test_simulation_those_who_are_busy_elsewhere_cost_little():
    without, with_wait = simulate(0.0, 1, 0.001, idle=31), simulate(0.004, 1, 0.001, idle=31)
    print(f"1 inferlet beside 31 with tools: {without[1]:.0f} -> {with_wait[1]:.0f}/s")
    assert with_wait[1] > 0.97 * without[1]


def test_simulation_slow_returns_are_not_waited_for():
    without, with_wait = simulate(0.0, 16, 0.030), simulate(0.004, 16, 0.030)
    print(f"16 inferlets, 30-60 ms away: {without[1]:.0f} -> {with_wait[1]:.0f}/s")
    assert with_wait[1] > 0.97 * without[1]
