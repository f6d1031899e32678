"""An inferlet gives up its pages for others at any moment, and goes on as if nothing had been."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable

import numpy as np
import pytest
import test_plan_ends
import test_plan_seams
import test_plan_texts
import test_plans
from plan_bench import PlanBench, u32
from prefix_bench import Group
from rounds import seeds
from test_prefixes import Program

from pieray.errors import DeviceLost, InvalidRequest, PierayError
from pieray.host.device.leases import IDLE_S
from pieray.host.tickets import Kind
from tests.support.digest_runner import reference

PROMPT = [65, 66, 67, 68, 69]

BY_THE_STEP = {
    # They count steps, take pages away by hand, or look into the pages that an export keeps.
    "test_no_page_stalls_a_plan_and_the_deadline_fails_it",
    "test_other_inferlets_and_queues_are_not_held_up",
    "test_memory_that_lacks_for_the_pages_between_is_waited_for",
    "test_what_is_exported_is_never_written_to_again",
    "test_each_step_is_one_event_and_wakes_nobody",
    "test_the_error_of_a_plan_is_that_of_its_stream",
    "test_a_watch_is_ready_while_there_is_something_to_read",
    "test_a_read_waits_for_the_next_token_and_for_the_end",
    "test_tickets_of_one_plan_share_what_is_drawn_in_the_order_asked",
    "test_a_fork_of_running_pages_is_a_copy_of_its_own",
    "test_a_lost_device_fails_the_plan_where_it_is",
}


def of_plans() -> list[Callable[[], None]]:
    """What must hold of plans, whatever becomes of their pages."""
    found = []
    for module in (test_plans, test_plan_ends, test_plan_seams, test_plan_texts):
        for name, function in vars(module).items():
            is_test = name.startswith("test_") and inspect.isfunction(function) and name not in BY_THE_STEP
            if is_test and not inspect.signature(function).parameters:
                found.append(function)
    return found


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("test", of_plans(), ids=lambda test: test.__name__)
def test_what_holds_of_plans_holds_of_those_that_give_up_their_pages(test, seed, monkeypatch):
    monkeypatch.setattr(PlanBench, "preempts", random.Random(seed))
    test()


def preempt(bench: PlanBench, kept: tuple[int, ...] = ()) -> None:
    with bench.parts.lock:
        bench.outbox.preempt(kept)


def running(prompt: list[int] = PROMPT, most: int = 40) -> tuple[PlanBench, int]:
    """A plan that has drawn a few tokens."""
    bench = PlanBench()
    plan = bench.plan(prompt, most)
    bench.handlers.plans.start(plan)
    for _ in range(4):
        bench.turn()
    return bench, plan


def test_all_pages_are_given_up_and_told_and_asked_for_again():
    bench, plan = running()
    num_bound = bench.pages.num_bound
    assert num_bound >= 2
    preempt(bench)
    bench.turn()
    bench.turn()
    assert bench.device.preempted_pages[0][1]
    assert len(bench.device.released) >= num_bound
    assert bench.num_swapped == 0  # it was brought back as soon as there was a page
    assert bench.all(plan) == reference(PROMPT, 40)
    bench.check()


def test_nothing_is_sent_while_pages_are_given_up_and_all_of_it_afterwards():
    bench, _ = running()
    preempt(bench)
    bench.handlers.tickets.flush()
    bench.device.posted.clear()
    pages = bench.handlers.kv.alloc(2)
    ticket = bench.handlers.forward.forward(bench.queue, pages, 0, u32(1, 2), u32(), u32())
    bench.handlers.tickets.flush()
    assert bench.device.posted == []
    del ticket


def test_pages_that_may_be_kept_stay():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(3)
    bench.handlers.forward.forward(bench.queue, pages, 0, u32(*range(12)), u32(), u32())
    bench.run()
    mine = bench.pages.pages_of(bench.pages.rows_of(pages)).tolist()
    preempt(bench, (mine[1],))
    bench.run()
    assert bench.pages.pages_of(bench.pages.rows_of(pages)).tolist() == [-1, mine[1], -1]
    assert mine[1] not in bench.device.released
    assert bench.pages.num_swapped == 2


def test_a_context_that_is_closed_while_it_is_copied_leaves_nothing_behind():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(3)
    bench.handlers.forward.forward(bench.queue, pages, 0, u32(*range(12)), u32(), u32())
    bench.run()
    preempt(bench)
    bench.handlers.kv.free(pages)
    bench.run()
    bench.handlers.tickets.flush()
    bench.pump()
    assert bench.pages.num_swapped == 0
    assert bench.num_swapped == 0
    bench.pages.check()


def test_a_context_that_is_closed_when_it_is_swapped_gives_its_slots_back():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(3)
    bench.handlers.forward.forward(bench.queue, pages, 0, u32(*range(12)), u32(), u32())
    bench.run()
    preempt(bench)
    bench.run()
    assert bench.num_swapped == 3
    bench.handlers.kv.free(pages)
    bench.handlers.tickets.flush()
    bench.pump()
    assert bench.num_swapped == 0


@pytest.mark.parametrize("num_slots", [0, 1, 2])
def test_what_finds_no_room_is_computed_again(num_slots):
    bench = PlanBench(num_slots=num_slots)
    plan = bench.plan(PROMPT, 40)
    bench.handlers.plans.start(plan)
    for _ in range(6):
        bench.turn()
    num_bound = bench.pages.num_bound
    preempt(bench)
    while not bench.device.preempted_pages:
        bench.turn()
    assert bench.device.preempted_pages[-1][1]
    assert len(bench.device.released) >= num_bound
    assert bench.outbox.swap.num_out == 0  # what it begins with is not kept without the rest
    for slot in list(bench.runner.slots):
        del bench.runner.slots[slot]  # whatever their pages held
    assert bench.all(plan) == reference(PROMPT, 40)
    bench.check()


@pytest.mark.parametrize("why", ["the log is given up", "a command has failed", "tokens were hidden from a plan"])
def test_what_can_be_neither_copied_nor_computed_again_stays_where_it_is_and_that_is_told(why):
    bench = PlanBench(num_slots=1)
    pages = bench.handlers.kv.alloc(30)
    bench.handlers.forward.forward(bench.queue, pages, 0, u32(*range(8)), u32(), u32())
    bench.run()
    if why == "the log is given up":
        bench.sides.first.lineage.give_up()
    elif why == "a command has failed":
        bench.runner.fail_at = bench.runner.num_steps + 1
        bench.handlers.forward.forward(bench.queue, bench.handlers.kv.alloc(1), 0, u32(1), u32(), u32())
        bench.run()
    else:
        bench.handlers.kv.mask(int(pages[0]), 1, 2, False)
        plan = bench.plan([9], 8, pages=pages, kv_len=8)
        bench.handlers.plans.start(plan)
        bench.run()
    num_bound = bench.pages.num_bound
    preempt(bench)
    while not bench.device.preempted_pages:
        bench.turn()
    assert bench.device.preempted_pages[-1][1] is False
    assert bench.pages.num_bound >= num_bound - 2
    bench.check()


def test_a_copy_that_fails_leaves_all_where_it_was(monkeypatch):
    bench, plan = running()

    def fail(_pages, _slots):
        raise RuntimeError("no")

    monkeypatch.setattr(bench.runner, "swap_out", fail)
    preempt(bench)
    while not bench.device.preempted_pages:
        bench.turn()
    assert bench.device.preempted_pages[-1][1] is False
    assert bench.all(plan) == reference(PROMPT, 40)


def test_a_page_of_which_a_part_was_not_written_is_given_up_and_that_part_is_not_read_when_it_is_back():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(2)
    bench.handlers.forward.forward(bench.queue, pages, 0, u32(*PROMPT[:5]), u32(), u32())
    bench.run()
    bench.runner.fail_at = bench.runner.num_steps + 1
    bench.handlers.forward.forward(bench.queue, pages, 5, u32(70, 71), u32(), u32())
    bench.run()
    preempt(bench)
    bench.run()
    assert bench.device.preempted_pages == [(len(bench.device.released), True)]
    assert bench.pages.num_swapped == 2
    with pytest.raises(InvalidRequest, match="kv_len 6: not all slots below it were written"):
        bench.handlers.forward.forward(bench.queue, pages, 6, u32(72), u32(), u32())
    pass_ = bench.handlers.forward.forward(bench.queue, pages, 5, u32(73), u32(), u32())
    said = bench.handlers.forward.sample(pass_, 0, 0.0, 0, 1.0, 0.0, 0)
    bench.run()
    assert bench.handlers.tickets.take_tokens(said).tolist() == reference([*PROMPT, 73], 1)
    bench.check()


def test_pages_that_are_dropped_after_all_do_not_count_as_swapped():
    bench = PlanBench(num_slots=1)
    bench.handlers.forward.forward(bench.queue, bench.handlers.kv.alloc(3), 0, u32(*PROMPT), u32(), u32())
    bench.run()
    preempt(bench)
    bench.run()
    assert json.loads(bench.handlers.runtime.usage())["pages_swapped"] == 0
    bench.handlers.tickets.flush()
    bench.pump()
    swap = bench.core.stats()["swap"]
    assert (swap["swapped_out"], swap["swapped_in"], swap["dropped"], swap["used"]) == (1, 0, 1, 0)


def test_a_device_that_is_lost_meanwhile_fails_what_there_is_and_nothing_hangs():
    bench, plan = running()
    preempt(bench)
    with bench.parts.lock:
        bench.outbox.fail_all(DeviceLost("gone"))
    assert bench.next(plan)  # what it had drawn
    with pytest.raises(DeviceLost):
        bench.next(plan)
    assert not bench.outbox.preemption.is_going
    bench.pages.check()


def test_a_plan_that_something_waits_behind_is_not_stopped():
    """The pass was sent: were the plan stopped, it would run before what it waits for."""
    bench, plan = running(most=30)
    pages = bench.handlers.kv.alloc(1)
    h = bench.handlers
    first = h.plans.create(bench.queue, pages, 0, u32(7), 3, 0)
    h.plans.start(first)
    h.forward.forward(h.queues.create(""), pages, 0, u32(8), u32(), u32())
    h.tickets.flush()
    bench.pump()
    preempt(bench)
    assert bench.device.preempted_pages == [(0, False)]
    bench.run()
    assert bench.all(plan) == reference(PROMPT, 30)


def test_an_inferlet_is_idle_when_it_has_pages_and_has_had_nothing_to_do_for_a_while(monkeypatch):
    now = 100.0
    monkeypatch.setattr("pieray.host.device.leases.time.monotonic", lambda: now)
    bench, plan = running(most=8)
    outbox = bench.outbox
    assert not outbox.leases.is_idle(now + 1)  # it draws
    assert bench.all(plan) == reference(PROMPT, 8)
    assert not outbox.leases.is_idle(now + IDLE_S / 2)
    assert outbox.leases.is_idle(now + 2 * IDLE_S)
    outbox.leases.pin()
    outbox.leases.pin()
    outbox.leases.idle()
    outbox.leases.unpin()
    assert not outbox.leases.is_idle(now + 9)
    outbox.leases.unpin()
    with pytest.raises(InvalidRequest, match="not pinned"):
        outbox.leases.unpin()
    outbox.leases.idle()
    assert outbox.leases.is_idle(now)
    assert not PlanBench().outbox.leases.is_idle(now + 9)  # it has none


def test_what_was_given_up_is_brought_back_when_the_program_is_about_to_go_on():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(3)
    bench.handlers.forward.forward(bench.queue, pages, 0, u32(*PROMPT), u32(), u32())
    bench.run()
    preempt(bench)
    bench.run()
    assert bench.pages.num_swapped == 2
    with bench.parts.lock:
        bench.outbox.prefetch()
    bench.pump()
    bench.run()
    assert bench.pages.num_swapped == 0
    pass_ = bench.handlers.forward.forward(bench.queue, pages, 5, u32(70), u32(), u32())
    said = bench.handlers.forward.sample(pass_, 0, 0.0, 0, 1.0, 0.0, 0)
    bench.run()
    assert bench.handlers.tickets.take_tokens(said).tolist() == reference([*PROMPT, 70], 1)


def test_who_has_waited_for_pages_and_got_them_counts_as_idle_when_it_has_run():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(3)
    bench.handlers.forward.forward(bench.queue, pages, 0, u32(*range(12)), u32(), u32())
    bench.handlers.tickets.flush()
    assert not bench.outbox.leases.is_idle(1e9)  # it waits for pages
    bench.run()
    assert bench.outbox.leases.is_idle(1e9)


def given_up() -> PlanBench:
    """An inferlet whose pages are in host memory."""
    bench = PlanBench()
    bench.handlers.forward.forward(bench.queue, bench.handlers.kv.alloc(3), 0, u32(*PROMPT), u32(), u32())
    bench.run()
    preempt(bench)
    bench.run()
    assert bench.pages.num_swapped == 2
    return bench


def test_when_work_outside_of_the_device_is_done_what_was_given_up_is_brought_back():
    bench = given_up()
    for kind in (Kind.TEXT, Kind.NONE):
        ticket = bench.parts.work.begin(kind)
        bench.parts.tickets.drop((ticket,))
        bench.parts.work.complete(ticket, None)  # nobody waits for it any more
    bench.run()
    assert bench.pages.num_swapped == 2
    bench.parts.work.complete(bench.parts.work.begin(Kind.TEXT), "an answer")
    bench.run()
    assert bench.pages.num_swapped == 0
    bench.check()


def test_usage_tells_pages_that_were_given_up():
    bench = given_up()
    assert json.loads(bench.handlers.runtime.usage()) == {"tokens_computed": 5, "tokens_found": 0, "pages_swapped": 2}


class Running(Program):
    """A random program whose plans go on while others take steps."""

    def __init__(self, group: Group, rng: random.Random, tenant: str) -> None:
        super().__init__(group, rng, tenant)
        self.plans: list[tuple[int, np.ndarray, list[int]]] = []

    def plan(self, pages: np.ndarray, line: list[int], most: int) -> None:
        handlers = self.guest.handlers
        plan = handlers.plans.create(handlers.queues.create(""), pages, len(line), u32(21), most, 0)
        handlers.plans.start(plan)
        self.plans.append((plan, pages, line))

    def step(self) -> None:
        if len(self.plans) > 1 or (self.plans and self.rng.random() < 0.3):
            self._collect(*self.plans.pop(0))
        else:
            super().step()

    def _collect(self, plan: int, pages: np.ndarray, line: list[int]) -> None:
        handlers = self.guest.handlers
        if self.rng.random() < 0.2:
            handlers.plans.cancel(plan)
        said: list[int] = []
        while True:
            ticket = handlers.plans.next(plan)
            self.group.run()
            got = handlers.tickets.take_tokens(ticket).tolist()
            if not got:
                break
            said += got
        assert said == reference([*line, 21], len(said))
        handlers.plans.close(plan)
        self.contexts.append((pages, [*line, 21, *said][: len(line) if not said else len(line) + len(said)]))


def run_programs(rng: random.Random, num_slots: int) -> Group:
    """Five random programs at most on a pool that two of them fill, and all that have been; without memory to swap to,
    some may fail for want of pages, as nobody else goes on while one waits."""
    group = Group(num_pages=rng.choice([48, 60]), lease_pages=rng.choice([1, 4]), relieves=rng, num_slots=num_slots)
    programs: list[Running] = []
    for _ in range(150):
        if len(programs) < 5 and rng.random() < 0.2:
            programs.append(Running(group, rng, rng.choice(["acme", "acme", "other"])))
        elif programs and rng.random() < 0.04:
            programs.pop(rng.randrange(len(programs))).end()
        elif programs:
            program = rng.choice(programs)
            try:
                program.step()
            except PierayError as error:
                if num_slots == ENOUGH or error.code not in ("out-of-pages", "cancelled"):
                    raise
                programs.remove(program)
                program.end()
        group.ledger.check()
        group.core.stats()
    for program in programs:
        program.end()
    return group


ENOUGH = 512


@pytest.mark.parametrize("num_slots", [ENOUGH, 20, 0])
@pytest.mark.parametrize("seed", seeds(16))
def test_random_programs_on_a_pool_that_is_too_small_draw_what_they_would_alone(seed, num_slots):
    """All pages and host slots are there again in the end; with memory to swap to, none fails."""
    group = run_programs(random.Random(seed), num_slots)
    assert group.ledger.num_available == group.ledger.total
    assert group.core.stats()["swap"]["used"] == 0


def test_the_seeds_do_swap():
    """Else the test above says nothing."""
    rng = random.Random(3)
    group = Group(num_pages=48, relieves=rng)
    programs = [Running(group, rng, "acme") for _ in range(5)]
    for _ in range(300):
        rng.choice(programs).step()
    assert sum(guest.outbox.swap.num_out for guest in group.guests.values()) > 50
    assert group.relief.num_idle > 5
    assert group.relief.num_running > 0
