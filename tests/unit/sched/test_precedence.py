"""Beside programs of a higher priority, others of their tenant are in as many steps as make it little slower."""

import random

import numpy as np
import pytest
from rounds import seeds
from test_step_shares import Device, prefills, seconds

from pieray.sched.costs import Kind
from pieray.sched.precedence import LOWER_PART, Precedence, are_lower
from pieray.urgency import command_priority, launch_priority

HIGH = command_priority(5, 0)


def test_the_lower_are_those_that_have_a_higher_one_of_their_tenant_beside_them():
    levels, tenants = np.array([0, 5, -1, -1, 5]), np.array([0, 0, 1, 1, 2])
    assert are_lower(levels, tenants).tolist() == [True, False, False, False, False]
    assert are_lower(levels[:0], tenants[:0]).tolist() == []


@pytest.mark.parametrize("seed", seeds(50))
def test_steps_with_all_make_those_of_the_highest_no_slower_than_by_a_part_and_come_again_and_again(seed):
    rng = random.Random(seed)
    precedence, highest_s = Precedence(), rng.uniform(0.1, 2.0)
    all_s = highest_s + rng.choice([0.01, 0.4, 1.0, 10.0])
    without = [precedence.keeps_out(highest_s, all_s) for _ in range(1000)]
    took_s = sum(highest_s if is_out else all_s for is_out in without)
    assert took_s <= (1 + LOWER_PART) * 1000 * highest_s + all_s
    assert without.count(False) >= int(1000 / (1 + (all_s - highest_s) / (LOWER_PART * highest_s) + 1))


def test_an_urgent_plan_is_slowed_by_a_part_at_most_however_many_others_there_are():
    alone = Device()
    alone.plan(1, priority=HIGH)
    alone.run(100)
    device = Device()
    for inferlet in range(2, 42):
        device.plan(inferlet)
    device.run(50)
    device.plan(1, priority=HIGH)
    device.run(100)
    assert np.mean(device.gaps[1]) <= 1.05 * (1 + LOWER_PART) * np.mean(alone.gaps[1])
    assert device.tokens[1] == pytest.approx(100, abs=2)
    others = [device.tokens.get(inferlet, 0) for inferlet in range(2, 42)]
    assert min(others) >= max(others) - 1 > 0  # together


def test_all_are_in_each_step_where_a_row_costs_nothing():
    device = Device(seconds(token=1e-6))
    for inferlet in range(2, 42):
        device.plan(inferlet)
    device.plan(1, priority=HIGH)
    device.run(100)
    assert {device.tokens[inferlet] for inferlet in range(1, 42)} == {100}


def test_a_priority_takes_nothing_from_another_tenant():
    device = Device()
    device.open(1, "a")
    device.plan(1, priority=HIGH)
    for inferlet in range(2, 5):
        device.open(inferlet, "b")
        device.plan(inferlet)
    device.run(100)
    assert {device.tokens[inferlet] for inferlet in range(1, 5)} == {100}


def test_prefills_of_lower_priority_wait_and_run_when_they_have_aged():
    device = Device()
    device.plan(1, priority=HIGH)
    feed = prefills(device, 2)
    device.run(20, feed)
    assert not device.had.get(2)
    for _ in range(int(1.5 / 0.9e-3)):
        feed()
        device.step()
    assert device.had[2] > 0
    assert np.median(device.gaps[1]) < 1.2e-3


def test_copies_and_swaps_of_lower_priority_run_at_once():
    device = Device()
    device.plan(1, priority=HIGH)
    device.step()
    device.copy(2, 1)
    device.swap(3, 1, 4)
    plan = device.step()
    assert {copy.inferlet for copy in plan.copies} == {2, 3}


@pytest.mark.parametrize("commands_s", [1e-3, 5e-3, 20e-3])
def test_what_commands_of_lower_priority_add_to_a_step_counts_as_theirs(commands_s):
    costs = seconds(1e-3)
    costs[Kind.COMMANDS] = commands_s
    device = Device(costs)
    device.plan(1, priority=HIGH)

    def feed() -> None:
        if ("p", 2) not in device.scheduler.queues.by_inferlet:
            device.forward(2, 4)

    device.run(400, feed)
    rate, alone = device.tokens[1] / sum(device.lengths), 1 / device.costs.bare
    assert rate >= 0.9 * alone / (1 + LOWER_PART)
    assert device.had[2] > 0.0


def test_commands_of_a_higher_priority_wait_for_no_rows_whatever_they_add_to_a_step():
    costs = seconds()
    costs[Kind.COMMANDS] = 5e-3
    device = Device(costs)
    for inferlet in range(2, 10):
        device.plan(inferlet)
    device.run(50)
    command = device.forward(1, 1000, priority=HIGH)
    device.step()
    while command.num_done < 1000:
        assert device.step().forwards, "it is in each step"


@pytest.mark.parametrize("seed", seeds(20))
def test_every_command_runs_in_the_end(seed):
    """Whatever priorities they have: a token of each plan, each forward, within a bounded time."""
    rng = random.Random(seed)
    device, forwards = Device(seconds(token=rng.choice([1e-6, 1e-4]))), []
    for inferlet in range(1, 12):
        device.open(inferlet, rng.choice("ab"))
        priority = command_priority(rng.choice([-100, 0, 0, 7, 100]), rng.randint(-100, 100))
        if rng.random() < 0.6:
            device.plan(inferlet, length=rng.randint(1, 40), priority=priority)
        else:
            forwards.append(device.forward(inferlet, rng.randint(1, 300), priority=priority))
    began, plans = device.now, 11 - len(forwards)
    while len(device.tokens) < plans or any(forward.num_done < forward.num_tokens for forward in forwards):
        device.step()
        assert device.now - began < 12.0
    assert device.costs.seconds[Kind.STEP] > 0


def test_the_launch_goes_before_the_queue():
    assert command_priority(1, -100) > command_priority(0, 100) > command_priority(0, 0) > command_priority(-1, 100)
    for launch in -100, -1, 0, 3, 100:
        for queue in -100, 0, 100:
            assert launch_priority(command_priority(launch, queue)) == launch
            assert launch_priority(np.array([command_priority(launch, queue)], np.int32)).tolist() == [launch]
