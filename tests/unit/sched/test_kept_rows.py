"""Rows that are in several steps in turn, chosen once."""

from typing import Any

import numpy as np
import pytest
from test_step_shares import Device

from pieray.sched.kept_rows import KEPT_STEPS, KeptRows
from pieray.sched.precedence import LOWER_PART
from pieray.urgency import command_priority

READY = np.arange(5)
HIGH = command_priority(5, 0)


def group(num_rows: int) -> Any:
    return list(range(num_rows))


def test_they_are_in_so_many_steps_and_those_are_charged_for_once():
    kept = KeptRows()
    kept.keep(group(2), READY, (1, 1), is_charged=True)
    taken = [kept.take(READY, (1, 1), lambda: True) for _ in range(KEPT_STEPS + 1)]
    assert taken == [[0, 1]] * KEPT_STEPS + [None]
    assert kept.take_uncharged() == KEPT_STEPS
    assert kept.take_uncharged() == 0


@pytest.mark.parametrize(
    ("num_rows", "ready", "changes", "stay_out"),
    [(5, READY, (1, 1), True), (2, READY.copy(), (1, 1), True), (2, READY, (2, 1), True), (2, READY, (1, 1), False)],
    ids=["they were all", "others are ready", "rows or commands have come", "others are to be in the step"],
)
def test_they_are_not_kept_where_something_is_otherwise(num_rows, ready, changes, stay_out):
    kept = KeptRows()
    kept.keep(group(num_rows), READY, (1, 1), is_charged=False)
    assert kept.take(ready, changes, lambda: stay_out) is None
    assert kept.take(READY, (1, 1), lambda: True) is None, "it is looked anew from then on"
    assert kept.take_uncharged() == 0


def test_a_higher_one_steps_alone_without_anybody_being_looked_at_and_as_fast_as_if_all_were():
    device = Device()
    for inferlet in range(2, 42):
        device.plan(inferlet)
    device.run(20)
    device.plan(1, priority=HIGH)
    former, looks = device.scheduler.former, []
    without = former._without_lower
    former._without_lower = lambda *given: looks.append(1) or without(*given)
    for _ in range(200):
        device.step()
    alone = [length for length in device.lengths[-200:] if length <= 1.01 * device.costs.bare]
    assert len(alone) >= 150
    assert len(looks) <= 200 / 4
    assert np.mean(device.gaps[1][-180:]) <= 1.05 * (1 + LOWER_PART) * device.costs.bare
    assert min(device.tokens[inferlet] for inferlet in range(2, 42)) > 20
