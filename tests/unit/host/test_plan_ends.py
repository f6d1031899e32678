"""Decode plans that end early, run beside others, are lost or asked for wrongly."""

from __future__ import annotations

import numpy as np
import pytest
from plan_bench import PlanBench, u32

from pieray.config import Limits
from pieray.errors import BadHandle, DeviceLost, InvalidRequest, PierayError, QuotaExceeded
from pieray.messages import ExtendPlan, StartPlan
from tests.support.digest_runner import reference

PROMPT = [65, 66, 67, 68, 69]


def test_cancel_gives_what_came_and_ends():
    bench = PlanBench()
    plan = bench.plan(PROMPT, 1000)
    bench.handlers.plans.start(plan)
    got = bench.next(plan)
    bench.wait(bench.handlers.plans.cancel(plan))
    state = bench.state_of(plan)
    assert (state["state"], state["finish_reason"]) == ("ended", "cancelled")
    assert got + bench.all(plan) == reference(PROMPT, state["num_tokens"])
    assert not bench.core.has_work
    assert bench.core.plans.num_running == 0


def test_after_a_cancel_the_pages_hold_what_the_guest_took():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(64)
    plan = bench.plan(PROMPT, 200, pages=pages)
    bench.handlers.plans.start(plan)
    got = bench.next(plan)
    for _ in range(7):
        bench.turn()
    got += bench.next(plan)
    bench.handlers.plans.close(plan)
    again = bench.plan(got[-1:], 30, pages=pages, kv_len=len(PROMPT) + len(got) - 1)
    bench.handlers.plans.start(again)
    assert got + bench.all(again) == reference(PROMPT, len(got) + 30)
    bench.check()


def test_a_fork_of_running_pages_is_a_copy_of_its_own():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(16)
    plan = bench.plan(PROMPT, 40, pages=pages)
    bench.handlers.plans.start(plan)
    got = bench.next(plan)
    for _ in range(5):
        bench.turn()
    got += bench.next(plan)
    forked = bench.handlers.kv.fork(pages[:4])
    stop = bench.handlers.plans.pause(plan)
    branch = bench.plan([got[3], 99], 20, pages=np.concatenate((forked, bench.handlers.kv.alloc(8))), kv_len=8)
    bench.handlers.plans.start(branch)
    bench.wait(stop)
    bench.handlers.plans.resume(plan)
    assert bench.all(branch) == reference([*PROMPT, *got[:4], 99], 20)
    assert got + bench.all(plan) == reference(PROMPT, 40)
    bench.check()


def test_a_conflicting_command_waits_for_the_plan():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(16)
    plan = bench.plan(PROMPT, 30, pages=pages)
    bench.handlers.plans.start(plan)
    bench.next(plan)
    other = bench.handlers.queues.create("")
    late = bench.handlers.forward.forward(other, pages, 5, u32(7), u32(), u32())
    bench.turn()
    assert not bench.handlers.tickets.ready(u32(late)), "it waits"
    bench.wait(late)
    assert bench.state_of(plan)["state"] == "ended"


def test_other_inferlets_and_queues_are_not_held_up():
    bench = PlanBench(max_batch_requests=2)
    plans = [bench.plan(PROMPT, 30, queue=bench.handlers.queues.create("")) for _ in range(6)]
    for plan in plans:
        bench.handlers.plans.start(plan)
    bench.run(most=15)
    counts = [bench.state_of(plan)["num_tokens"] for plan in plans]
    assert max(counts) - min(counts) <= 1, "they take turns"


def test_slots_never_written_stay_unreadable():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(16)
    plan = bench.plan(PROMPT, 40, pages=pages)
    bench.handlers.plans.start(plan)
    bench.next(plan)
    bench.wait(bench.handlers.plans.cancel(plan))
    kv_len = bench.state_of(plan)["kv_len"]
    bench.handlers.forward.forward(bench.queue, pages, kv_len, u32(1), u32(), u32())
    with pytest.raises(InvalidRequest, match="not all slots below it were written"):
        bench.handlers.forward.forward(bench.queue, pages, kv_len + 9, u32(1), u32(), u32())


def test_what_a_plan_wrote_can_be_rebuilt():
    from pieray.pages.lineage import CopyStep, ForwardStep

    bench = PlanBench()
    pages = bench.handlers.kv.alloc(16)
    plan = bench.plan(PROMPT, 30, pages=pages)
    bench.handlers.plans.start(plan)
    said = bench.next(plan)
    bench.wait(bench.handlers.plans.pause(plan))
    forked = bench.handlers.kv.fork(pages)
    bench.handlers.plans.resume(plan)
    said += bench.all(plan)
    assert said == reference(PROMPT, 30)
    frames = bench.pages.frame_ids(pages[:9]).tolist()
    slots: dict[tuple[int, int], int] = {}
    for step in bench.sides.first.lineage.rebuild_plan(frames):
        if isinstance(step, ForwardStep):
            tokens = np.frombuffer(step.tokens, "<u4").tolist()
            for index, token in enumerate(tokens, step.kv_len):
                slots[step.frames[index // 4], index % 4] = token
        else:
            assert isinstance(step, CopyStep)
            for i in range(step.count):
                slots[step.dst, step.dst_offset + i] = slots[step.src, step.src_offset + i]
    line = PROMPT + said[:-1]
    assert [slots[frames[i // 4], i % 4] for i in range(len(line))] == line
    bench.handlers.kv.free(forked)


@pytest.mark.parametrize("num_turns", [1, 4, 9, 22])
def test_a_fork_of_a_running_plan_sees_exactly_what_is_written(num_turns):
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(16)
    plan = bench.plan(PROMPT, 40, pages=pages)
    bench.handlers.plans.start(plan)
    for _ in range(num_turns):
        bench.turn()
    kv_len = bench.state_of(plan)["kv_len"]
    assert kv_len == len(PROMPT) + bench.state_of(plan)["num_tokens"] - 1 > 0
    forked = bench.handlers.kv.fork(pages)
    with pytest.raises(InvalidRequest, match=f"kv_len {kv_len + 1}: not all slots"):
        bench.handlers.forward.forward(bench.queue, forked, kv_len + 1, u32(7), u32(), u32())
    late = bench.handlers.forward.forward(bench.queue, forked, kv_len, u32(7), u32(), u32())
    bench.handlers.plans.close(plan)
    bench.wait(late)
    bench.check()


def test_tickets_of_one_plan_share_what_is_drawn_in_the_order_asked():
    bench = PlanBench()
    plan = bench.plan(PROMPT, 12)
    bench.handlers.plans.start(plan)
    first = bench.handlers.plans.next(plan)
    bench.turn()
    bench.turn()
    assert bench.handlers.tickets.ready(u32(first)) == [first]
    for _ in range(3):
        bench.turn()
    second, third = bench.handlers.plans.next(plan), bench.handlers.plans.next(plan)
    assert bench.handlers.tickets.ready(u32(second, third)) == [], "the first has all there is"
    bench.turn()
    assert bench.handlers.tickets.ready(u32(second, third)) == [second]
    bench.handlers.tickets.cancel(u32(second))
    bench.turn()
    drawn = bench.state_of(plan)["num_tokens"]
    got = bench.handlers.tickets.take_tokens(third).tolist()
    taken = bench.handlers.tickets.take_tokens(first).tolist()
    assert taken + got == reference(PROMPT, drawn), "what was forgotten is the next one's"
    assert taken + got + bench.all(plan) == reference(PROMPT, 12)


def test_a_lost_device_fails_the_plan_where_it_is():
    bench = PlanBench()
    plan = bench.plan(PROMPT, 1000)
    bench.handlers.plans.start(plan)
    got = bench.next(plan)
    bench.turn()
    with bench.parts.lock:
        bench.outbox.fail_all(DeviceLost("the device group is gone"))
    got += bench.next(plan)
    assert got == reference(PROMPT, len(got))
    with pytest.raises(DeviceLost):
        bench.next(plan)
    pause = bench.handlers.plans.pause(plan)
    bench.wait(pause)


def test_a_failing_step_is_the_error_of_next():
    bench = PlanBench()
    plan = bench.plan(PROMPT, 10)
    bench.handlers.plans.start(plan)
    bench.runner.fail_at = 4
    bench.run()
    got = bench.next(plan)
    assert got == reference(PROMPT, 3)
    with pytest.raises(PierayError, match="out of luck"):
        bench.next(plan)
    bench.handlers.plans.truncate(plan, 2)
    bench.handlers.plans.resume(plan)
    assert got[:2] + bench.all(plan) == reference(PROMPT, 10)
    bench.check()


def test_an_inferlets_end_leaves_nothing_in_the_batcher():
    from pieray.messages import CancelInferlet

    bench = PlanBench()
    for _ in range(5):
        bench.handlers.plans.start(bench.plan(PROMPT, 100, queue=bench.handlers.queues.create("")))
    bench.turn()
    bench.turn()
    assert bench.core.plans.num_running == 5
    bench.core.submit("p", [CancelInferlet(1, 7)], 0.0)
    assert bench.core.plans.num_running == 0
    assert not bench.core.has_work


def test_a_plan_that_is_not_sent_yet_can_be_paused_cancelled_and_started_again():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(8)
    first = bench.plan(PROMPT, 10, pages=pages)
    bench.handlers.plans.start(first)
    pause = bench.handlers.plans.pause(first)
    bench.wait(pause)
    assert not [m for m in bench.device.posted if isinstance(m, StartPlan)]
    assert bench.state_of(first)["state"] == "paused"
    bench.handlers.plans.resume(first)
    assert bench.all(first) == reference(PROMPT, 10)
    second = bench.plan(PROMPT, 10)
    bench.handlers.plans.start(second)
    bench.handlers.plans.close(second)
    bench.run()
    assert not [m for m in bench.device.posted if isinstance(m, (StartPlan, ExtendPlan))]
    bench.check()


def test_bad_calls_are_named():
    bench = PlanBench(limits=Limits(plans=3))
    h = bench.handlers
    pages = h.kv.alloc(4)
    for make, match in [
        (lambda: h.plans.create(bench.queue, pages, 0, u32(), 3, 0), "at least 1 token; given 0 and 3"),
        (lambda: h.plans.create(bench.queue, pages, 0, u32(1), 0, 0), "at least 1 token; given 1 and 0"),
        (lambda: h.plans.create(bench.queue, pages, 0, u32(256), 1, 0), "below 256; given 256"),
        (lambda: h.plans.create(bench.queue, pages, 0, u32(1), 17, 0), "17 tokens; 4 pages of 4"),
        (lambda: h.plans.create(bench.queue, pages, 0, u32(1), 2**32 - 1, 0), "context of 1024"),
        (lambda: h.plans.create(bench.queue, pages, 2**32 - 1, u32(1), 1, 0), "context of 1024"),
    ]:
        with pytest.raises(InvalidRequest, match=match):
            make()
    with pytest.raises(BadHandle):
        h.plans.create(99, pages, 0, u32(1), 1, 0)
    with pytest.raises(BadHandle):
        h.plans.create(bench.queue, u32(12345), 0, u32(1), 1, 0)
    with pytest.raises(BadHandle):
        h.plans.create(bench.queue, pages, 0, u32(1), 1, 77)
    plan = h.plans.create(bench.queue, pages, 0, u32(1), 16, 0)
    for call in (h.plans.next, h.plans.pause):
        with pytest.raises(InvalidRequest, match="not started"):
            call(plan)
    with pytest.raises(InvalidRequest, match="call score before start"):
        h.plans.next_scored(plan)
    with pytest.raises(InvalidRequest, match="15 tokens a step; given 16"):
        h.plans.set_drafter(plan, 16, u32())
    with pytest.raises(InvalidRequest, match="one was empty"):
        h.plans.set_stop(plan, u32(), [""])
    with pytest.raises(InvalidRequest, match="64 texts"):
        h.plans.set_stop(plan, u32(), ["x"] * 65)
    h.plans.start(plan)
    for change in (
        lambda: h.plans.start(plan),
        lambda: h.plans.resume(plan),
        lambda: h.plans.set_sampler(plan, 0),
        lambda: h.plans.set_stop(plan, u32(1), []),
        lambda: h.plans.set_grammar(plan, 0),
        lambda: h.plans.set_adapter(plan, 0),
        lambda: h.plans.set_drafter(plan, 1, u32()),
        lambda: h.plans.score(plan),
        lambda: h.plans.truncate(plan, 0),
    ):
        with pytest.raises(InvalidRequest, match="running"):
            change()
    for call in (
        h.plans.start,
        h.plans.resume,
        h.plans.next,
        h.plans.pause,
        h.plans.cancel,
        h.plans.close,
        h.plans.state,
        h.plans.score,
    ):
        with pytest.raises(BadHandle, match="plan 4711 is not open"):
            call(4711)
    assert bench.all(plan) == reference([1], 16)
    with pytest.raises(InvalidRequest, match="0 to 16 tokens; given 17"):
        h.plans.truncate(plan, 17)
    h.plans.create(bench.queue, pages, 0, u32(1), 1, 0)
    h.plans.create(bench.queue, pages, 0, u32(1), 1, 0)
    with pytest.raises(QuotaExceeded, match="plans: the limit is 3 plans"):
        h.plans.create(bench.queue, pages, 0, u32(1), 1, 0)
    h.plans.close(plan)
    with pytest.raises(BadHandle):
        h.plans.close(plan)


def test_a_plan_on_unwritten_or_freed_pages_does_not_start():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(4)
    plan = bench.handlers.plans.create(bench.queue, pages, 3, u32(1), 2, 0)
    with pytest.raises(InvalidRequest, match="kv_len 3: not all slots"):
        bench.handlers.plans.start(plan)
    freed = bench.handlers.plans.create(bench.queue, pages, 0, u32(1), 2, 0)
    bench.handlers.kv.free(pages)
    with pytest.raises(BadHandle):
        bench.handlers.plans.start(freed)
    assert bench.state_of(freed)["state"] == "ready"
    bench.check()
