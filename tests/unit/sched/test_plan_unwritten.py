"""Plans on pages that a failed command was to write, and on pages that other commands use."""

from __future__ import annotations

import pytest
from test_plans_core import Desk, forward, start

from pieray.errors import QuotaExceeded
from pieray.messages import StopPlan
from pieray.sched.plans import PlanCommand
from pieray.sched.table import HOOKED


def test_what_a_plan_has_drawn_over_a_failed_pass_can_be_read():
    desk = Desk()
    desk.runner.fail_at = 1
    desk.submit(forward(1, [0, 1], [5, 6, 7, 8, 9, 10], queue=1))
    desk.run()
    assert desk.ends[1] == "internal"
    desk.submit(start(2, [0, 1], [5], 7))
    desk.run()
    assert desk.ends[2] == ["length", ""]
    desk.submit(forward(3, [0, 1], [7], kv_len=7))
    desk.run()
    assert desk.ends[3] is None, "slots 0 to 6 hold what the plan has drawn"


def test_what_a_stopped_plan_has_not_drawn_stays_unreadable():
    desk = Desk()
    desk.runner.fail_at = 1
    desk.submit(forward(1, [0, 1], [5, 6, 7, 8, 9, 10], queue=1))
    desk.run()
    desk.submit(start(2, [0, 1], [5], 7))
    desk.step()
    desk.step()
    desk.submit(StopPlan(2))
    desk.submit(forward(3, [0, 1], [7], kv_len=5, queue=2))
    desk.run()
    assert desk.ends[3] == "cancelled"


@pytest.mark.parametrize("as_row", [True, False])
def test_the_count_of_queued_tokens_comes_back_to_nothing(as_row: bool, monkeypatch: pytest.MonkeyPatch):
    desk = Desk()
    monkeypatch.setattr(PlanCommand, "may_be_row", as_row)
    desk.submit(start(1, [0, 1], [5], 7), start(2, [2, 3], [6], 7, inferlet=2))
    desk.step()

    def spent(_plan: PlanCommand, *_: int) -> None:
        raise QuotaExceeded("the grammar is spent")

    assert len(desk.core._scheduler.table) == 2 * as_row
    desk.core._scheduler.table.rows["flags"] |= HOOKED
    monkeypatch.setattr(PlanCommand, "look_at", spent)
    desk.run()
    assert desk.ends == {1: "quota", 2: "quota"}
    assert desk.core._scheduler.queues.num_tokens == 0


class PanicError(BaseException):
    """What a panic of native code, of a grammar's or a tokenizer's, looks like: no Exception."""


@pytest.mark.parametrize("error", [PanicError("native"), ValueError("ours")])
@pytest.mark.parametrize("as_row", [True, False])
def test_whatever_looking_at_a_token_throws_fails_that_plan_alone(
    as_row: bool, error: BaseException, monkeypatch: pytest.MonkeyPatch
):
    desk = Desk()
    monkeypatch.setattr(PlanCommand, "may_be_row", as_row)
    desk.submit(start(1, [0, 1], [5], 7), start(2, [2, 3], [6], 7, inferlet=2))
    desk.step()
    look_at = PlanCommand.look_at

    def looks(plan: PlanCommand, token: int) -> None:
        if plan.ticket == 1:
            raise error
        look_at(plan, token)

    desk.core._scheduler.table.rows["flags"] |= HOOKED
    monkeypatch.setattr(PlanCommand, "look_at", looks)
    desk.run()
    assert desk.ends == {1: "internal", 2: ["length", ""]}
    assert desk.core._scheduler.queues.num_tokens == 0
