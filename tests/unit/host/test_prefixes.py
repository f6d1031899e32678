"""Lookup before compute: what was computed is found, shared, and cannot be told from what is computed."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from arrays import NONE, u32
from fakes import PAGE_SIZE
from prefix_bench import GREEDY, Group, Guest
from rounds import seeds

from pieray.errors import PierayError
from pieray.pages.lineage import Lineage
from tests.support.digest_runner import reference

PROMPT = [1 + i % 7 for i in range(30)]  # 7 pages of 4, and 2 tokens


def prefill(group: Group, guest: Guest, prompt: list[int], num_pages: int = 10, kv_len: int = 0) -> np.ndarray:
    """Pages with the prompt run; what is drawn behind it is right."""
    pages = guest.handlers.kv.alloc(num_pages)
    drawn = group.token(guest, guest.forward(pages, kv_len, prompt[kv_len:], len(prompt) - kv_len - 1))
    assert [drawn] == reference(prompt, 1)
    return pages


def usage(guest: Guest) -> tuple[int, int]:
    return guest.outbox.num_computed, guest.outbox.leases.num_found


def test_the_same_prompt_of_another_inferlet_computes_only_what_is_not_there() -> None:
    group = Group()
    one, two = group.launch(), group.launch()
    prefill(group, one, PROMPT)
    assert (usage(one), group.ledger.num_indexed) == ((30, 0), 7)
    prefill(group, two, PROMPT)
    assert usage(two) == (2, 28)
    prefill(group, two, PROMPT[:20] + [9] * 10)
    assert usage(two) == (2 + 10, 28 + 20)


def test_pages_are_found_after_their_inferlet_has_ended_and_count_as_available() -> None:
    group = Group()
    one = group.launch()
    prefill(group, one, PROMPT)
    group.end(one)
    assert (group.ledger.num_cached, group.ledger.num_available) == (7, 64)
    two = group.launch()
    prefill(group, two, PROMPT)
    assert usage(two) == (2, 28)
    group.end(two)
    assert (group.ledger.num_cached, group.ledger.num_available) == (7, 64)


def test_a_text_of_many_passes_is_looked_through_now_and_then_and_found_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes as long as the log is: one for each pass would be a square."""
    group = Group(num_pages=160)
    one = group.launch()
    looks = []
    rebuild_plan = Lineage.rebuild_plan
    monkeypatch.setattr(Lineage, "rebuild_plan", lambda self, frames: looks.append(0) or rebuild_plan(self, frames))
    text = [1 + i % 7 for i in range(60 * PAGE_SIZE)]
    pages = one.handlers.kv.alloc(60)
    for start in range(0, len(text), PAGE_SIZE):  # a page each
        group.token(one, one.forward(pages, start, text[start : start + PAGE_SIZE], PAGE_SIZE - 1))
    assert len(looks) <= 25
    assert 60 > group.ledger.num_indexed >= 40
    group.end(one)
    assert group.ledger.num_indexed == 60
    two = group.launch()
    prefill(group, two, text, 60)
    assert usage(two) == (PAGE_SIZE, 59 * PAGE_SIZE)


def test_a_prompt_of_whole_pages_computes_its_last_page() -> None:
    group = Group()
    prefill(group, group.launch(), PROMPT[:28])
    two = group.launch()
    prefill(group, two, PROMPT[:28])
    assert usage(two) == (4, 24)


def test_nothing_is_skipped_from_the_first_row_on_that_an_output_is_asked_of() -> None:
    group = Group()
    prefill(group, group.launch(), PROMPT)
    two = group.launch()
    pages = two.handlers.kv.alloc(10)
    pass_ = two.handlers.forward.forward(two.queue, pages, 0, u32(*PROMPT), NONE, NONE)
    asked = [two.handlers.forward.sample(pass_, row, *GREEDY) for row in (18, 29)]
    assert [group.token(two, ticket) for ticket in asked] == [*reference(PROMPT[:19], 1), *reference(PROMPT, 1)]
    assert usage(two) == (14, 16)
    three = group.launch()
    pages = three.handlers.kv.alloc(10)
    drawn = group.token(three, three.forward(pages, 0, PROMPT, 2))
    assert [drawn] == reference(PROMPT[:3], 1)
    assert usage(three) == (30, 0)


def test_another_tenant_finds_nothing() -> None:
    group = Group()
    prefill(group, group.launch("acme"), PROMPT)
    other = group.launch("other")
    prefill(group, other, PROMPT)
    assert usage(other) == (30, 0)


def test_a_queue_that_does_not_reuse_neither_finds_nor_is_found() -> None:
    group = Group()
    one, two, three = (group.launch() for _ in range(3))
    one.parts.tables.queues.get(one.queue).is_reusing = False
    prefill(group, one, PROMPT)
    prefill(group, two, PROMPT)
    assert usage(two) == (30, 0)
    prefill(group, three, PROMPT)
    assert usage(three) == (2, 28)
    three.parts.tables.queues.get(three.queue).is_reusing = False
    prefill(group, three, PROMPT)
    assert usage(three) == (32, 28)


def test_a_write_to_a_page_that_was_found_copies_it() -> None:
    group = Group()
    one, two = group.launch(), group.launch()
    first = prefill(group, one, PROMPT)
    found = prefill(group, two, PROMPT)
    other = [*PROMPT[:10], 9, 9]
    assert [group.token(two, two.forward(found, 10, [9, 9], 1))] == reference(other, 1)
    assert [group.token(one, one.forward(first, 29, PROMPT[29:], 0))] == reference(PROMPT, 1)
    assert [group.token(two, two.forward(found, 12, [8], 0))] == reference([*other, 8], 1)


def test_what_was_computed_behind_found_pages_and_behind_forks_is_found_too() -> None:
    group = Group()
    one, two, three = (group.launch() for _ in range(3))
    prefill(group, one, PROMPT[:24])
    longer = [*PROMPT, *range(20, 40)]
    pages = prefill(group, two, longer, 20)
    assert usage(two) == (len(longer) - 24, 24)
    fork = two.handlers.kv.fork(pages[:12])
    branch = np.concatenate((fork, two.handlers.kv.alloc(10)))
    line = [*longer[:48], *range(50, 70)]
    assert [group.token(two, two.forward(branch, 48, line[48:], 19))] == reference(line, 1)
    prefill(group, three, line, 20)
    assert usage(three) == (4, 64)


def test_a_plan_finds_its_prompt_and_its_text_is_found() -> None:
    group = Group(128)
    texts = []
    for num_found in (0, 28):
        guest = group.launch()
        pages = guest.handlers.kv.alloc(20)
        plan = guest.handlers.plans.create(guest.queue, pages, 0, u32(*PROMPT), 40, 0)
        guest.handlers.plans.start(plan)
        ticket = guest.handlers.plans.next(plan)
        said: list[int] = []
        while True:
            group.turn()
            if not guest.handlers.tickets.ready(u32(ticket)):
                continue
            got = guest.handlers.tickets.take_tokens(ticket).tolist()
            if not got:
                break
            said += got
            ticket = guest.handlers.plans.next(plan)
        assert said == reference(PROMPT, 40)
        assert usage(guest) == (30 + 39 - num_found, num_found)
        texts.append(said)
        group.end(guest)
    turn = group.launch()
    line = [*PROMPT, *texts[0], 77, 78]
    prefill(group, turn, line, 20)
    assert usage(turn) == (len(line) - 68, 68)


def test_a_prompt_is_found_while_the_plan_that_ran_it_goes_on() -> None:
    group = Group(128)
    one, two = group.launch(), group.launch()
    plan = one.handlers.plans.create(one.queue, one.handlers.kv.alloc(30), 0, u32(*PROMPT), 80, 0)
    one.handlers.plans.start(plan)
    for _ in range(4):
        group.turn()
    assert group.core.has_work
    prefill(group, two, PROMPT)
    assert usage(two) == (2, 28)


def test_what_was_computed_on_masked_tokens_is_not_known_by_its_own() -> None:
    group = Group()
    one = group.launch()
    pages = one.handlers.kv.alloc(10)
    one.handlers.kv.mask(int(pages[0]), 0, 1, False)
    one.forward(pages, 0, PROMPT[:4])
    one.forward(pages, 4, PROMPT[4:])
    group.run()
    assert group.ledger.num_indexed == 1  # the first page, which saw all of itself
    two = group.launch()
    prefill(group, two, PROMPT)
    assert usage(two) == (26, 4)


def test_a_page_moved_to_another_place_is_not_taken_for_what_it_was() -> None:
    group = Group()
    one, two = group.launch(), group.launch()
    pages = prefill(group, one, PROMPT)
    into = one.handlers.kv.alloc(10)
    one.forward(into, 0, [3] * 4)
    one.handlers.kv.copy(one.queue, int(pages[1]), 0, int(into[1]), 0, PAGE_SIZE)
    group.run()
    one.handlers.kv.free(into)
    group.end(one)
    prefill(group, two, [3] * 4 + PROMPT[4:8] + PROMPT)
    assert usage(two)[1] <= 4


def test_after_a_failure_an_inferlet_tells_no_more() -> None:
    group = Group()
    one, two = group.launch(), group.launch()
    group.runner.fail_at = 1
    one.forward(one.handlers.kv.alloc(10), 0, PROMPT)
    group.run()
    prefill(group, one, PROMPT)
    assert group.ledger.num_indexed == 0
    prefill(group, two, PROMPT)
    assert usage(two) == (30, 0)


def test_idle_pages_are_dropped_deepest_first_for_whoever_wants_the_space() -> None:
    group = Group(num_pages=16)
    one = group.launch()
    prefill(group, one, PROMPT, 8)
    group.end(one)
    assert group.ledger.num_available == 16
    big = group.launch()
    other = [100 + i % 50 for i in range(44)]
    prefill(group, big, other, 11)
    assert group.ledger.num_indexed >= 11
    group.end(big)
    two = group.launch()
    prefill(group, two, PROMPT[:14], 4)
    assert usage(two)[1] in (8, 12)  # the beginning is left


def test_exported_pages_are_found_by_their_content_and_an_export_of_found_pages_works() -> None:
    group = Group()
    one, two, three = (group.launch() for _ in range(3))
    pages = prefill(group, one, PROMPT)
    for guest, name, held in ((one, "a", pages), (two, "b", prefill(group, two, PROMPT))):
        ticket = guest.handlers.kv.export_pages(name, held, 30, "", "tenant", 0, False, False)
        group.run()
        guest.handlers.tickets.take_none(ticket)
    group.end(one)
    group.end(two)
    ticket = three.handlers.kv.import_pages("b")
    group.run()
    opened = json.loads(three.handlers.tickets.take_text(ticket))
    assert [group.token(three, three.forward(u32(*opened["pages"]), 30, [5], 0))] == reference([*PROMPT, 5], 1)
    prefill(group, three, PROMPT)
    assert usage(three) == (1 + 2, 28)


class Program:
    """A random program of one inferlet: contexts that share beginnings, are forked, cut, rewritten, freed."""

    most_contexts = 3

    def __init__(self, group: Group, rng: random.Random, tenant: str) -> None:
        self.group, self.rng = group, rng
        self.guest = group.launch(tenant)
        self.contexts: list[tuple[np.ndarray, list[int]]] = []

    def step(self) -> None:
        rng, handlers = self.rng, self.guest.handlers
        match rng.randrange(8) if self.contexts else 0:
            case 0 | 1 if len(self.contexts) < self.most_contexts:
                prefix = [11 + rng.randrange(2)] * 10 + [13] * rng.randrange(20)
                self.run(handlers.kv.alloc(14), [], [*prefix, *rng.choices(range(20, 23), k=rng.randint(1, 9))])
            case 2 | 3 if self.contexts:
                pages, line = self.contexts.pop(rng.randrange(len(self.contexts)))
                keep = rng.randint(0, len(line)) if rng.random() < 0.4 else len(line)
                more = rng.choices(range(20, 23), k=rng.randint(1, 8))
                if keep + len(more) <= 14 * PAGE_SIZE:
                    self.run(pages, line[:keep], more)
                else:
                    handlers.kv.free(pages)
            case 4 if len(self.contexts) < self.most_contexts:
                pages, line = rng.choice(self.contexts)
                if len(line) < 14 * PAGE_SIZE:
                    self.run(handlers.kv.fork(pages), list(line), [rng.randrange(20, 23)])
            case 5:
                handlers.kv.free(self.contexts.pop(rng.randrange(len(self.contexts)))[0])
            case 6 if self.contexts:
                pages, line = self.contexts.pop()
                room = 14 * PAGE_SIZE - len(line)
                if room > 2:
                    self.plan(pages, line, min(room - 1, rng.randint(1, 12)))
                else:
                    handlers.kv.free(pages)
            case _:
                self.group.turn()

    def run(self, pages: np.ndarray, line: list[int], more: list[int]) -> None:
        """One pass or several behind one another, unwaited for in between."""
        cut = self.rng.randint(0, len(more) - 1) if self.rng.random() < 0.4 else 0
        if cut:
            self.guest.forward(pages, len(line), more[:cut])
        ticket = self.guest.forward(pages, len(line) + cut, more[cut:], len(more) - cut - 1)
        whole = [*line, *more]
        assert [self.group.token(self.guest, ticket)] == reference(whole, 1)
        self.contexts.append((pages, whole))

    def plan(self, pages: np.ndarray, line: list[int], most: int) -> None:
        handlers = self.guest.handlers
        plan = handlers.plans.create(self.guest.queue, pages, len(line), u32(21), most, 0)
        handlers.plans.start(plan)
        for _ in range(self.rng.randrange(4)):
            self.group.turn()
        if self.rng.random() < 0.3:
            handlers.plans.cancel(plan)
        self.group.run()
        said: list[int] = []
        while True:
            ticket = handlers.plans.next(plan)
            self.group.run()
            got = handlers.tickets.take_tokens(ticket).tolist()
            if not got:
                break
            said += got
        whole = [*line, 21]
        assert said == reference(whole, len(said))
        handlers.plans.close(plan)
        kept = [*whole, *said]
        held = len(line) if not said else len(kept) - 1
        self.contexts.append((pages, kept[:held]))

    def end(self) -> None:
        self.group.end(self.guest)


@pytest.mark.parametrize("seed", seeds(16))
def test_random_programs_draw_what_they_would_alone_and_all_pages_are_available_again(seed: int) -> None:
    rng = random.Random(seed)
    num_pages = rng.choice([40, 60, 200])
    group = Group(num_pages=num_pages, lease_pages=rng.choice([1, 4]))
    programs: list[Program] = []
    num_found = 0
    for _ in range(100):
        if len(programs) < 3 and rng.random() < 0.2:
            programs.append(Program(group, rng, rng.choice(["acme", "acme", "other"])))
        elif programs and rng.random() < 0.05:
            ended = programs.pop(rng.randrange(len(programs)))
            num_found += ended.guest.outbox.leases.num_found
            ended.end()
        elif programs:
            program = rng.choice(programs)
            try:
                program.step()
            except PierayError as error:
                if num_pages == 200 or error.code not in ("out-of-pages", "cancelled"):
                    raise
                programs.remove(program)
                program.end()
        group.ledger.check()
    for program in programs:
        num_found += program.guest.outbox.leases.num_found
        program.end()
    assert group.ledger.num_available == group.ledger.total
    assert num_found
