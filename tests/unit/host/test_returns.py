"""Pages that others share are not copied when they are given up, and come back by what they held."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from arrays import u32
from prefix_bench import Group, Guest
from rounds import seeds
from test_preemption import ENOUGH, Running

from tests.support.digest_runner import reference

PROMPT = [20 + n % 3 for n in range(33)]  # eight full pages, and a token
FULL = 8


def prompted(group: Group, tenant: str = "acme") -> tuple[Guest, np.ndarray]:
    guest = group.launch(tenant)
    pages = guest.handlers.kv.alloc(FULL + 2)
    assert group.token(guest, guest.forward(pages, 0, PROMPT, len(PROMPT) - 1)) == reference(PROMPT, 1)[0]
    return guest, pages


def goes_on(group: Group, guest: Guest, pages: np.ndarray) -> None:
    token = group.token(guest, guest.forward(pages, len(PROMPT), [30], 0))
    assert token == reference([*PROMPT, 30], 1)[0]


def ask_for_pages(group: Group, guests: Sequence[Guest]) -> None:
    """All of these at one time, as relief tells them."""
    group.relief._asked = dict.fromkeys([guest.holder for guest in guests], 1e9)
    left = group.relief.left_to_others()
    for guest in guests:
        with guest.parts.lock:
            guest.outbox.preempt(group.ledger.kept_pages_of(guest.holder), left[guest.holder])


def give_up(group: Group, *guests: Guest) -> None:
    ask_for_pages(group, guests)
    group.run()
    assert not any(guest.pages.num_bound for guest in guests)


def pages_of(guest: Guest, pages: np.ndarray) -> list[int]:
    found: list[int] = guest.pages.pages_of(guest.pages.rows_of(pages))[:FULL].tolist()
    return found


def drop_cached(group: Group) -> None:
    """Somebody takes all pages that are free or cached, and gives them back."""
    taker = group.launch("other")
    lease = group.ledger.lease(taker.holder, group.ledger.num_available)
    assert lease is not None
    group.runner.slots = {slot: held for slot, held in group.runner.slots.items() if slot[0] not in lease}
    group.ledger.close(taker.holder)
    del group.guests[taker.name]


def test_pages_that_another_has_are_not_copied_and_are_found_again():
    group = Group()
    first, its = prompted(group)
    second, pages = prompted(group)
    assert second.outbox.leases.num_found == 4 * FULL
    shared = pages_of(first, its)
    give_up(group, second)
    assert (second.outbox.swap.num_out, second.outbox.swap.num_left) == (1, FULL)  # the page that is not full
    goes_on(group, second, pages)
    assert pages_of(second, pages) == shared
    assert second.outbox.num_computed == 2
    assert second.outbox.swap.num_found == FULL
    second.pages.check()
    goes_on(group, first, its)
    for guest in (first, second):
        group.end(guest)
    assert group.core.stats()["swap"]["used"] == 0


def test_what_is_not_there_any_more_is_computed_again_once_and_found_by_others():
    group = Group()
    guests = [prompted(group) for _ in range(3)]
    give_up(group, *[guest for guest, _ in guests])
    assert [guest.outbox.swap.num_left for guest, _ in guests] == [FULL, FULL, 0]  # the last one has kept it
    drop_cached(group)
    for guest, pages in guests:
        goes_on(group, guest, pages)
        guest.pages.check()
    assert len({tuple(pages_of(guest, pages)) for guest, pages in guests}) == 1
    assert guests[1][0].outbox.swap.num_found == guests[2][0].outbox.swap.num_found == FULL
    for guest, _ in guests:
        group.end(guest)
    assert group.ledger.num_available == group.ledger.total
    assert group.core.stats()["swap"]["used"] == 0


def test_what_comes_back_from_host_memory_is_found_by_others():
    group = Group()
    guest, pages = prompted(group)
    give_up(group, guest)
    assert guest.outbox.swap.num_out == FULL + 1
    drop_cached(group)
    goes_on(group, guest, pages)
    assert guest.outbox.swap.num_found == 0
    other, its = prompted(group)
    assert other.outbox.leases.num_found == 4 * FULL
    assert pages_of(other, its) == pages_of(guest, pages)


def test_what_is_cached_still_takes_no_copy_to_come_back():
    group = Group()
    guest, pages = prompted(group)
    mine = pages_of(guest, pages)
    give_up(group, guest)
    goes_on(group, guest, pages)
    assert pages_of(guest, pages) == mine
    assert group.core.stats()["swap"]["swapped_in"] == 1  # the page that is not full


def test_a_page_that_came_back_is_copied_before_it_is_written_to():
    group = Group()
    first, its = prompted(group)
    second, pages = prompted(group)
    give_up(group, second)
    rewritten = [*PROMPT[:6], 90, 91]
    token = group.token(second, second.forward(pages, 6, [90, 91], 1))
    assert token == reference(rewritten, 1)[0]
    goes_on(group, first, its)


def test_a_part_that_is_still_there_is_found_and_the_rest_is_computed_behind_it():
    group = Group()
    first, its = prompted(group)
    second, pages = prompted(group)
    give_up(group, second)
    shared = pages_of(first, its)
    group.end(first)
    taken = group.launch("other")
    group.ledger.lease(taken.holder, group.ledger.num_free + 3)
    assert sum(page in group.ledger.index for page in shared) == FULL - 3
    for page in shared:
        if page not in group.ledger.index:
            group.runner.slots = {slot: held for slot, held in group.runner.slots.items() if slot[0] != page}
    group.ledger.close(taken.holder)
    before = len(group.runner.batches)
    goes_on(group, second, pages)
    assert second.outbox.swap.num_found == FULL - 3
    assert len(group.runner.batches) - before == 2  # the rest, and the token


def test_what_a_part_is_to_be_computed_on_may_be_lost_again_before_it_is():
    group = Group(num_slots=0)
    first, _ = prompted(group)
    second, pages = prompted(group)
    give_up(group, second)
    first.outbox.ledger.release(first.pages.surplus(keep=0))
    group._serve(first)
    exported = group.ledger.lease(second.holder, 1)
    assert exported is not None
    second.pages.grant(exported)
    taker = group.launch("other")
    assert group.ledger.lease(taker.holder, group.ledger.num_available) is not None

    ticket = second.forward(pages, len(PROMPT), [30], 0)
    second.handlers.tickets.flush()  # it asks for the full pages, and is asked for the spare one meanwhile
    group.ledger.release(second.holder, second.pages.surplus(keep=0))
    assert group.ledger.lease(taker.holder, 1) is not None
    group.pump()
    assert second.outbox.swap.num_found == second.pages.num_bound == FULL  # the rest waits for a page
    ask_for_pages(group, [second])
    group.turn()
    assert not second.pages.num_bound
    group.ledger.close(taker.holder)
    del group.guests[taker.name]
    group.pump()
    assert group.token(second, ticket) == reference([*PROMPT, 30], 1)[0]
    second.pages.check()
    group.end(first)
    group.end(second)
    assert group.ledger.num_available == group.ledger.total


@pytest.mark.parametrize("num_slots", [ENOUGH, 0])
@pytest.mark.parametrize("seed", seeds(6))
def test_programs_of_one_prefix_keep_it_shared_whatever_they_give_up(seed, num_slots):
    rng = random.Random(seed)
    group = Group(num_pages=40, relieves=rng, num_slots=num_slots)
    guests = [prompted(group) for _ in range(8)]
    lines = [list(PROMPT) for _ in guests]
    for _ in range(120):
        number = rng.randrange(len(guests))
        guest, pages = guests[number]
        line = lines[number]
        if len(line) >= 4 * (FULL + 2):
            continue
        if rng.random() < 0.3:
            ask_for_pages(group, [guest for guest, _ in rng.sample(guests, 3)])
            group.run()
        token = group.token(guest, guest.forward(pages, len(line), [30 + number], 0))
        line.append(30 + number)
        assert token == reference(line, 1)[0]
        group.ledger.check()
        guest.pages.check()
        found = {tuple(pages_of(guest, pages)) for guest, pages in guests if -1 not in pages_of(guest, pages)}
        assert len(found) == 1, "the prefix has multiplied"
    for guest, _ in guests:
        group.end(guest)
    assert group.ledger.num_available == group.ledger.total
    assert group.core.stats()["swap"]["used"] == 0


@pytest.mark.parametrize("num_slots", [ENOUGH, 12, 0])
@pytest.mark.parametrize("seed", seeds(8))
def test_plans_of_one_prefix_say_what_they_would_alone_whenever_they_are_asked_for_their_pages(seed, num_slots):
    rng = random.Random(seed)
    group = Group(num_pages=36, relieves=rng, num_slots=num_slots)
    guests = [group.launch() for _ in range(5)]
    lines = [[*PROMPT, 60 + number] for number in range(len(guests))]
    plans = []
    for guest, line in zip(guests, lines, strict=True):
        plan = guest.handlers.plans.create(guest.queue, guest.handlers.kv.alloc(FULL + 8), 0, u32(*line), 24, 0)
        guest.handlers.plans.start(plan)
        plans.append((guest, plan))
    said: list[list[int]] = [[] for _ in guests]
    tickets = {number: guest.handlers.plans.next(plan) for number, (guest, plan) in enumerate(plans)}
    for _ in range(3000):
        group.turn(lambda: ask_for_pages(group, rng.sample(guests, rng.randrange(4)) if rng.random() < 0.5 else []))
        group.ledger.check()
        for number, ticket in list(tickets.items()):
            guest, plan = plans[number]
            if guest.handlers.tickets.ready(u32(ticket)):
                del tickets[number]
                if got := guest.handlers.tickets.take_tokens(ticket).tolist():
                    said[number] += got
                    tickets[number] = guest.handlers.plans.next(plan)
        if not tickets:
            break
    assert not tickets, "they do not come to their end"
    assert said == [reference(line, 24) for line in lines]
    for guest in guests:
        group.end(guest)
    assert group.ledger.num_available == group.ledger.total


class Sharing(Running):
    most_contexts = 6


@pytest.mark.parametrize("num_slots", [ENOUGH, 0])
@pytest.mark.parametrize("seed", seeds(6))
def test_random_programs_that_share_pages_draw_what_they_would_alone(seed, num_slots):
    rng = random.Random(seed)
    group = Group(num_pages=rng.choice([40, 60]), relieves=rng, num_slots=num_slots)
    programs = [Sharing(group, rng, "acme") for _ in range(4)]
    for _ in range(150):
        rng.choice(programs).step()
        group.ledger.check()
        group.core.stats()
    assert sum(program.guest.outbox.swap.num_found for program in programs)
    for program in programs:
        program.end()
    assert group.ledger.num_available == group.ledger.total
    assert group.core.stats()["swap"]["used"] == 0
