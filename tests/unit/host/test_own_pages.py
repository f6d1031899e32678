"""An inferlet whose contexts are more than the pool gives up those that it does not use, for itself."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
from arrays import u32
from prefix_bench import Group, Guest
from rounds import seeds
from test_preemption import ENOUGH, Running

from pieray.errors import OutOfPages, PierayError
from tests.support.digest_runner import reference

PAGES, TOKENS = 4, 14


def contexts(group: Group, guest: Guest, count: int) -> list[tuple[np.ndarray, list[int]]]:
    """Contexts of four pages each, run one after the other."""
    found = []
    for number in range(count):
        pages, line = guest.handlers.kv.alloc(PAGES), [20 + number] * TOKENS
        assert group.token(guest, guest.forward(pages, 0, line, TOKENS - 1)) == reference(line, 1)[0]
        found.append((pages, line))
    return found


@pytest.mark.parametrize("num_slots", [512, 7, 0])
def test_contexts_that_do_not_fit_together_are_used_in_turn(num_slots):
    group = Group(num_pages=10, num_slots=num_slots)
    guest = group.launch()
    held = contexts(group, guest, 8)
    for _ in range(2):
        for pages, line in held:
            token = group.token(guest, guest.forward(pages, len(line), [30], 0))
            line.append(30)
            assert token == reference(line, 1)[0]
    assert group.core.stats()["swap"]["used"] <= num_slots
    group.end(guest)
    assert group.ledger.num_free + group.ledger.num_idle == 10
    assert group.core.stats()["swap"]["used"] == 0


def test_what_was_not_used_for_longest_goes_first():
    group = Group(num_pages=14, lease_pages=1)
    guest = group.launch()
    held = contexts(group, guest, 3)
    group.token(guest, guest.forward(*held[0][:1], TOKENS, [30], 0))
    contexts(group, guest, 1)
    away = [bool((guest.pages.pages_of(guest.pages.rows_of(pages)) == -1).any()) for pages, _ in held]
    assert away == [False, True, False]


def test_what_alone_is_more_than_the_pool_is_refused_at_once_and_nothing_gives_up_its_pages_for_it():
    group = Group(num_pages=10)
    guest = group.launch()
    contexts(group, guest, 2)
    ticket = guest.forward(guest.handlers.kv.alloc(12), 0, [40] * 44, 43)
    guest.handlers.tickets.flush()
    group.pump()
    with pytest.raises(OutOfPages, match="the pool has 10 pages.*this inferlet holds.*asked for"):
        guest.handlers.tickets.take_tokens(ticket)
    assert guest.outbox.swap.num_out == 0
    assert len(group.line) == 0


def test_passes_enqueued_together_that_do_not_fit_together_run_one_after_the_other():
    group = Group(num_pages=10)
    guest = group.launch()
    lines = [[20 + number] * TOKENS for number in range(12)]
    tickets = [guest.forward(guest.handlers.kv.alloc(PAGES), 0, line, TOKENS - 1) for line in lines]
    found = [group.token(guest, ticket) for ticket in tickets]
    assert found == [reference(line, 1)[0] for line in lines]


@pytest.mark.parametrize("num_slots", [512, 0])
def test_plans_that_grow_beyond_the_pool_together_go_on_one_after_the_other(num_slots):
    group = Group(num_pages=12, num_slots=num_slots)
    guest = group.launch()
    plans = []
    for number in range(4):
        queue, pages = guest.handlers.queues.create(""), guest.handlers.kv.alloc(9)
        plans.append(guest.handlers.plans.create(queue, pages, 0, u32(20 + number), 34, 0))
        guest.handlers.plans.start(plans[-1])
    for number, plan in enumerate(plans):
        said: list[int] = []
        while True:
            ticket = guest.handlers.plans.next(plan)
            group.run()
            if not (got := guest.handlers.tickets.take_tokens(ticket).tolist()):
                break
            said += got
        assert said == reference([20 + number], 34)


def test_a_plan_that_alone_grows_beyond_the_pool_ends_with_what_it_had():
    group = Group(num_pages=6)
    guest = group.launch()
    contexts(group, guest, 1)
    plan = guest.handlers.plans.create(guest.queue, guest.handlers.kv.alloc(10), 0, u32(20), 38, 0)
    guest.handlers.plans.start(plan)
    group.run()
    assert guest.handlers.tickets.take_tokens(guest.handlers.plans.next(plan)).tolist() == reference([20], 24)
    with pytest.raises(OutOfPages, match="the pool has 6 pages"):
        guest.handlers.tickets.take_tokens(guest.handlers.plans.next(plan))


def test_what_waits_for_its_own_plan_for_too_long_is_told_so():
    group = Group(num_pages=10)
    guest = group.launch()
    plan = guest.handlers.plans.create(guest.queue, guest.handlers.kv.alloc(10), 0, u32(20), 30, 0)
    guest.handlers.plans.start(plan)
    for _ in range(25):
        group.turn()
    queue, pages = guest.handlers.queues.create(""), guest.handlers.kv.alloc(PAGES)
    ticket = guest.handlers.forward.forward(queue, pages, 0, u32(*[21] * TOKENS), u32(), u32())
    guest.handlers.tickets.flush()
    (timer,) = [timer for timer in guest.timers if timer.seconds == 9.0]
    timer.ring()
    with pytest.raises(OutOfPages, match=r"page_wait_s: the limit is 9 s; this inferlet holds 10 pages"):
        guest.handlers.tickets.take_none(ticket)
    group.run()
    assert guest.handlers.tickets.take_tokens(guest.handlers.plans.next(plan)).tolist() == reference([20], 30)


def test_others_that_want_its_pages_while_it_makes_room_for_itself_get_them_then():
    group = Group(num_pages=10)
    guest = group.launch()
    contexts(group, guest, 2)
    ticket = guest.forward(guest.handlers.kv.alloc(PAGES), 0, [40] * TOKENS, TOKENS - 1)
    guest.handlers.tickets.flush()
    assert guest.outbox.preemption.is_going
    guest.outbox.preempt(())
    assert not guest.device.preempted_pages
    group.pump()
    assert guest.outbox.swap.num_out == 0
    assert group.token(guest, ticket) == reference([40] * TOKENS, 1)[0]
    assert guest.outbox.swap.num_out == 8


class Many(Running):
    """Its contexts and plans are many times the pool."""

    most_contexts = 10


@pytest.mark.parametrize("num_slots", [ENOUGH, 12, 0])
@pytest.mark.parametrize("seed", seeds(8))
def test_a_random_program_of_many_contexts_draws_on_a_small_pool_what_it_would_on_a_large_one(seed, num_slots):
    """Where host memory is short, what is computed again may take more pages than there are: then it is told so."""
    rng = random.Random(seed)
    group = Group(num_pages=rng.randint(17, 30), lease_pages=rng.choice([1, 4]), num_slots=num_slots)
    program = Many(group, rng, "acme")
    for _ in range(120):
        try:
            program.step()
        except PierayError as error:
            if num_slots == ENOUGH or error.code not in ("out-of-pages", "cancelled"):
                raise
            break
        group.ledger.check()
        program.guest.pages.check()
        group.core.stats()
    assert program.guest.outbox.swap.num_out or not num_slots
    program.end()
    assert group.ledger.num_available == group.ledger.total
    assert group.core.stats()["swap"]["used"] == 0


@pytest.mark.parametrize("seed", seeds(4))
def test_random_programs_of_many_contexts_go_on_beside_one_another(seed):
    """Each of them fills the pool many times; they give up pages for themselves and for each other."""
    rng = random.Random(seed)
    group = Group(num_pages=rng.randint(34, 50), lease_pages=rng.choice([1, 4]), relieves=rng)
    programs = [Many(group, rng, rng.choice(["acme", "other"])) for _ in range(3)]
    for _ in range(150):
        rng.choice(programs).step()
        group.ledger.check()
        group.core.stats()
    for program in programs:
        program.end()
    assert group.ledger.num_available == group.ledger.total
    assert group.core.stats()["swap"]["used"] == 0


@pytest.mark.parametrize("length", [3, 14])
def test_who_is_behind_a_plan_that_ends_for_want_of_pages_asks_for_its_own(length):
    """The plan alone is more than the pool: it ends with that, and no other of its inferlet's waits for ever."""
    group = Group(num_pages=10)
    guest = group.launch()
    handlers = guest.handlers
    plan = handlers.plans.create(guest.queue, handlers.kv.alloc(30), 0, u32(65, 66), 110, 0)
    handlers.plans.start(plan)
    behind = [guest.forward(handlers.kv.alloc(PAGES), 0, [40] * length, length - 1) for _ in range(2)]
    other = handlers.queues.create("")
    handlers.forward.forward(other, handlers.kv.alloc(PAGES), 0, u32(*[50] * length), u32(), u32())
    drawn = handlers.plans.next(plan)
    for _ in range(200):
        handlers.tickets.flush()
        group.turn()
        if handlers.tickets.ready(u32(drawn)):
            with contextlib.suppress(OutOfPages):
                handlers.tickets.take_tokens(drawn)
                drawn = handlers.plans.next(plan)
                continue
            break
    for _ in range(50):
        handlers.tickets.flush()
        group.turn()
    for ticket in behind:
        assert handlers.tickets.take_tokens(ticket).tolist() == reference([40] * length, 1)
    assert guest.outbox.num_outstanding == 0
