"""Relief: who gives up pages for whom, and that all programs come to their end whatever the pool."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest
from rounds import seeds

from pieray.leases.ledger import Holder, PageLedger
from pieray.leases.queue import LeaseQueue
from pieray.leases.rank import Facts, Ranks
from pieray.leases.relief import AGAIN_S, ANSWER_S, NEWCOMER_WAIT_S, Relief
from pieray.messages.leases import Place

A, B, C, D = (Holder(f"peer-{name}", 1) for name in "abcd")


class Pool:
    def __init__(self, total: int, **holds: int) -> None:
        """`holds`: pages by the name of the holder, who are born in that order."""
        self.ledger = PageLedger(total)
        self.line = LeaseQueue(self.ledger)
        self.relief = Relief(self.ledger, self.line)
        for number, name in enumerate("abcd"):
            self.line.ranks.open(Holder(f"peer-{name}", 1), Facts(born=number))
        for name, count in holds.items():
            assert self.ledger.lease(Holder(f"peer-{name}", 1), count) is not None

    def want(self, holder: Holder, count: int, now: float = -NEWCOMER_WAIT_S) -> None:
        """It has waited for so long, at 0, that age alone counts."""
        assert self.line.request(holder, 1, count, now, 1e9) is None


def test_nobody_gives_up_pages_while_nobody_waits():
    assert Pool(8, a=4, b=4).relief.choose(0.0, []) == []


def test_the_lowest_rank_gives_up_its_pages_and_no_more_than_it_takes():
    pool = Pool(8, b=3, c=3, d=2)
    pool.want(A, 2)
    assert pool.relief.choose(0.0, []) == [D]
    assert pool.line.kept_for == A
    assert pool.relief.choose(0.0, []) == []  # D is at it
    pool.ledger.release(D, pool.ledger.pages_of(D))
    pool.relief.answered(D, 0.1, is_whole=True)
    assert [granted.holder for granted in pool.line.retry(0.1)] == [A]
    assert pool.line.kept_for is None


def test_what_has_begun_is_left_to_get_on_for_a_while_by_those_that_are_older_and_have_nothing():
    pool = Pool(8, c=4, d=4)
    pool.want(B, 2, now=0.0)
    assert pool.relief.choose(0.5 * NEWCOMER_WAIT_S, []) == []
    assert pool.relief.choose(0.5 * NEWCOMER_WAIT_S, [C]) == [C]  # idle ones are no matter of age
    pool = Pool(8, c=4, d=4)
    pool.want(B, 2, now=0.0)
    assert pool.relief.choose(NEWCOMER_WAIT_S, []) == [D]


def test_a_priority_and_who_has_pages_wait_for_no_younger_one():
    pool = Pool(8, c=4, d=4)
    pool.want(C, 2, now=0.0)
    assert pool.relief.choose(0.0, []) == [D]
    pool = Pool(8, c=4, d=4)
    pool.line.ranks.open(B, Facts(priority=1))
    pool.want(B, 2, now=0.0)
    assert pool.relief.choose(0.0, []) == [D]


def test_whoever_ranks_higher_keeps_its_pages():
    pool = Pool(8, a=4, b=4)
    pool.want(C, 2)
    assert pool.relief.choose(0.0, []) == []


def test_nothing_is_given_up_in_vain():
    pool = Pool(8, a=6, c=1, d=1)
    pool.want(B, 3)
    assert pool.relief.choose(0.0, []) == []  # C and D have but two


def test_idle_programs_give_up_theirs_first_whatever_their_rank():
    pool = Pool(8, a=4, d=4)
    pool.want(B, 2)
    assert pool.relief.choose(0.0, [A]) == [A]
    assert (pool.relief.num_idle, pool.relief.num_running) == (1, 0)


def test_who_cannot_give_up_pages_is_left_alone_for_a_while():
    pool = Pool(8, c=4, d=4)
    pool.want(A, 2)
    assert pool.relief.choose(0.0, []) == [D]
    pool.relief.answered(D, 0.0, is_whole=False)
    assert pool.relief.choose(0.1, []) == [C]
    pool.relief.answered(C, 0.1, is_whole=False)
    assert pool.relief.choose(0.2, []) == []
    assert pool.relief.choose(AGAIN_S + 0.05, []) == [D]


def test_programs_of_a_dead_peer_are_not_asked():
    """Nobody would answer, and their pages come with the fence."""
    pool = Pool(8, c=4, d=4)
    pool.ledger.drop_peer(D.peer_id, fenced=False)
    pool.want(A, 2)
    assert pool.relief.choose(0.0, []) == [C]


def test_a_program_that_does_not_answer_is_counted_on_no_more():
    pool = Pool(8, d=8)
    pool.want(A, 2)
    assert pool.relief.choose(0.0, []) == [D]
    assert pool.relief.choose(ANSWER_S, []) == [D]


def test_pages_that_exports_keep_or_others_have_make_no_room_by_themselves():
    pool = Pool(8, c=4)
    pages = pool.ledger.pages_of(C)
    pool.ledger.keep(C, pages[:2])
    pool.ledger.share(D, pages[2:])
    pool.ledger.lease(B, 4)
    pool.want(A, 2)
    assert pool.relief.choose(0.0, []) == [D, C]  # what both have is free when both have let go of it
    assert pool.ledger.kept_pages_of(C) == pages[:2]


def test_nobody_gives_up_pages_that_stay_with_others():
    """D is the lowest, and all that it has is A's as well."""
    pool = Pool(8, a=4, c=4)
    pool.ledger.share(D, pool.ledger.pages_of(A))
    pool.want(B, 2)
    assert pool.relief.choose(0.0, []) == [C]
    assert pool.relief.choose(ANSWER_S, [D]) == [C]


def test_pages_that_a_program_has_more_than_once_are_free_when_it_gives_up_all_that_it_has():
    """Two of its contexts have found the same pages."""
    pool = Pool(8, c=4, d=4)
    pages = pool.ledger.pages_of(D)
    pool.ledger.share(D, pages)
    pool.want(A, 2)
    assert pool.relief.choose(0.0, []) == [D]
    assert pool.ledger.kept_pages_of(D) == []
    pool.ledger.release(D, pages + pages)
    assert pool.ledger.num_free == 4


def test_of_several_who_give_up_one_page_the_last_is_to_keep_what_it_holds():
    pool = Pool(8, c=4)
    pages = pool.ledger.pages_of(C)
    pool.ledger.share(D, pages)
    pool.ledger.share(A, pages[:1])
    pool.ledger.lease(B, 4)
    pool.want(A, 2)
    assert pool.relief.choose(0.0, []) == [D, C]
    assert pool.relief.left_to_others() == {D: pages, C: pages[:1]}


def test_only_the_tenant_itself_makes_room_below_its_quota():
    pool = Pool(8)
    pool.line = LeaseQueue(pool.ledger, quota_of=lambda tenant: 4 if tenant == "small" else 0)
    pool.relief = Relief(pool.ledger, pool.line)
    for number, (holder, tenant) in enumerate(((A, "small"), (B, "small"), (C, "other"))):
        pool.line.ranks.open(holder, Facts(tenant, born=number))
    pool.ledger.lease(B, 4)
    pool.ledger.lease(C, 2)
    pool.want(A, 1)
    assert pool.relief.choose(0.0, []) == [B]


@dataclass
class Program:
    """Goes from step to step, each of which wants so many pages in all; now and then it is idle."""

    holder: Holder
    facts: Facts
    wants: list[int]
    idle: set[int] = field(default_factory=set)  # steps before which it is away for a while
    can_swap: bool = True
    ahead: int = 0  # pages that it asks for ahead of need
    step: int = 0
    wakes_at: float = 0.0
    is_asking: bool = False
    began: float = 0.0
    ended: float = math.inf


class Machine:
    """Programs on one pool, in ticks of 10 ms; what a real group does with its actors, without them."""

    def __init__(self, total: int, weights: dict[str, float]) -> None:
        self.ledger = PageLedger(total)
        self.ranks = Ranks(self.ledger, lambda tenant: weights.get(tenant, 1.0))
        self.line = LeaseQueue(self.ledger, self.ranks)
        self.relief = Relief(self.ledger, self.line)
        self.now = 0.0
        self.live: dict[Holder, Program] = {}
        self.done: list[Program] = []

    def launch(self, program: Program) -> None:
        program.began = self.now
        self.ranks.open(program.holder, program.facts)
        self.live[program.holder] = program

    def tick(self) -> None:
        self.now += 0.01
        for program in list(self.live.values()):
            self._advance(program)
        idle = [p.holder for p in self.live.values() if self.now < p.wakes_at]
        for holder in self.relief.choose(self.now, idle):
            program = self.live[holder]
            if program.can_swap:
                self.ledger.close(holder)
            self.relief.answered(holder, self.now, is_whole=program.can_swap)
        for granted in self.line.retry(self.now):
            self.live[granted.holder].is_asking = False
        self.ledger.check()

    def _advance(self, program: Program) -> None:
        if program.is_asking or self.now < program.wakes_at:
            return
        holder = program.holder
        if program.step == len(program.wants):
            self.ledger.close(holder)
            self.relief.close(holder)
            self.ranks.close(holder)
            program.ended = self.now
            self.done.append(self.live.pop(holder))
            return
        short = program.wants[program.step] - self.ledger.num_pages_of(holder)
        if short > 0:
            self.ranks.served(holder, 64 * program.step)
            num_more = min(program.ahead, program.wants[-1] - program.wants[program.step])
            program.is_asking = self.line.request(holder, 1, short, self.now, 1e9, num_more=num_more) is None
            if program.is_asking:
                return
        if program.step in program.idle:
            program.idle.discard(program.step)
            program.wakes_at = self.now + 0.3
            return
        program.step += 1


@pytest.mark.parametrize("seed", seeds(60))
def test_all_programs_come_to_their_end(seed):
    """Random programs, ranks, tenants, pools and idle times; some cannot give up pages, as long as the pool takes all
    of those together."""
    rng = random.Random(seed)
    total = rng.randint(4, 40)
    machine = Machine(total, {"t0": rng.choice([0.2, 1.0, 5.0])})
    programs, stubborn = [], 0
    for number in range(rng.randint(2, 30)):
        most = rng.randint(1, total)
        wants = sorted(rng.randint(1, most) for _ in range(rng.randint(1, 12)))
        can_swap = stubborn + wants[-1] > total // 2 or rng.random() < 0.9
        stubborn += 0 if can_swap else wants[-1]
        facts = Facts(
            f"t{rng.randrange(3)}",
            rng.choice([0, 0, 1, -5, 7]),
            rng.choice([math.inf, rng.uniform(0, 9)]),
            born=rng.uniform(0, 3),
        )
        idle = {step for step in range(len(wants)) if rng.random() < 0.1}
        ahead = rng.choice([0, 2, 8])
        programs.append(Program(Holder(f"p{number % 4}", number), facts, wants, idle, can_swap, ahead))
    waiting = list(programs)
    for _ in range(40_000):
        while waiting and rng.random() < 0.3:
            machine.launch(waiting.pop())
        machine.tick()
        if not waiting and not machine.live:
            break
    assert {p.holder for p in machine.done} == {p.holder for p in programs}
    assert machine.ledger.num_free == total
    assert machine.relief.num_asked == 0


@pytest.mark.parametrize("seed", seeds(5))
def test_a_low_priority_is_served_in_bounded_time_beside_an_endless_stream_of_higher_ones(seed):
    """The stream wants more than the pool has, for ever; each of its programs outranks the one, and comes anew."""
    rng = random.Random(seed)
    machine = Machine(8, {})
    low = Program(Holder("low", 1), Facts(priority=0, born=0.0), [2, 3, 4])
    number = 0
    for tick in range(40_000):
        if tick == 20:
            machine.launch(low)
        while len(machine.live) < 6:
            number += 1
            facts = Facts(priority=2, born=machine.now)
            wants, ahead = [rng.randint(1, 6) for _ in range(5)], rng.choice([0, 4])
            machine.launch(Program(Holder("high", number), facts, wants, ahead=ahead))
        machine.tick()
        if low in machine.done:
            break
    assert low in machine.done, f"after {machine.now} s"
    assert low.ended - low.began < 4 * 2 * 31  # three requests, each of them two priorities below


def test_cached_pages_go_before_anybody_gives_up_theirs():
    pool = Pool(8, b=4)
    pages = pool.ledger.lease(A, 4)
    assert pages is not None
    pool.ledger.enter(A, pages, [Place(bytes([n]) * 16, b"root", n) for n in range(4)])
    pool.ledger.close(A)
    assert pool.line.request(A, 1, 4, 0.0, 9.0) is not None
