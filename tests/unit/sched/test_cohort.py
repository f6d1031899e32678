"""CohortWait: who is waited for, for how long, and what it is worth."""

import heapq

import pytest

from pieray.sched.cohort import CohortWait


def cohort(step_s: float = 0.010, cap_s: float = 0.004) -> CohortWait[str]:
    wait: CohortWait[str] = CohortWait(cap_s)
    wait.stepped(-step_s, 0.0)
    return wait


def test_cap_is_the_smaller_of_the_setting_and_half_a_step():
    assert cohort(step_s=0.010).cap_s == 0.004
    assert cohort(step_s=0.002).cap_s == 0.001
    assert CohortWait(0.004).cap_s == 0.0  # nothing is known of steps yet


def test_waits_for_the_rest_until_the_last_is_back_or_the_cap():
    wait = cohort()
    for key in "abc":
        wait.answered(key, 1.0)
    wait.arrived("a", 1.0005)
    assert wait.wait_s(1.0005) == pytest.approx(0.0035)
    wait.arrived("b", 1.001)
    assert wait.wait_s(1.001) == pytest.approx(0.003)
    wait.arrived("c", 1.002)
    assert wait.wait_s(1.002) == 0.0


def test_one_active_inferlet_is_never_kept_waiting():
    wait = cohort()
    for turn in range(5):
        wait.answered("a", float(turn))
        wait.arrived("a", turn + 0.001)
        assert wait.wait_s(turn + 0.001) == 0.0


def test_inferlet_that_does_not_come_back_costs_one_wait():
    wait = cohort()
    wait.answered("a", 1.0)
    wait.answered("tool-user", 1.0)
    wait.arrived("a", 1.001)
    assert wait.wait_s(1.001) > 0
    assert wait.wait_s(1.004) == 0.0  # the cap; it is not asked after any more
    for turn in range(2, 5):
        wait.answered("a", float(turn))
        wait.arrived("a", turn + 0.001)
        assert wait.wait_s(turn + 0.001) == 0.0
    wait.arrived("tool-user", 5.0)
    wait.answered("tool-user", 5.5)
    wait.arrived("tool-user", 5.501)  # back at decoding: one quick return is enough
    wait.answered("tool-user", 6.0)
    assert wait.wait_s(6.001) == pytest.approx(0.003)


def test_inferlet_that_ended_is_not_waited_for():
    wait = cohort()
    for key in ("a", "b", "c"):
        wait.answered(key, 1.0)
    wait.ended("a")
    assert wait.wait_s(1.001) > 0
    wait.ended_all(lambda key: key in "bc")
    assert wait.wait_s(1.001) == 0.0


def test_arrival_hidden_by_a_running_step_regains_trust_slowly():
    wait = cohort()
    wait.answered("a", 1.0)
    wait.wait_s(1.1)  # missed
    for turn in (2.0, 3.0):
        wait.answered("a", turn)
        assert wait.wait_s(turn) == 0.0
        wait.stepped(turn, turn + 0.010)
        wait.arrived("a", turn + 0.010)
    wait.answered("a", 4.0)
    assert wait.wait_s(4.0) == pytest.approx(0.004)


def simulate(cap_s: float, num: int, think_s: float, idle: int = 0, until_s: float = 2.0) -> tuple[float, float]:
    """(mean batch, answers per second) of `num` inferlets that ask again after [1, 2) * think_s, a step of 5 ms plus
    30 us for each, and `idle` more inferlets that come back after 200 ms."""
    wait: CohortWait[int] = CohortWait(cap_s)
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
