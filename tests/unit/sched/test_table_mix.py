"""Rows of the decode table among all other commands: each sequence is what it is alone, each ticket ends once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pieray.messages import (
    CancelInferlet,
    Completed,
    CopyTokens,
    DecodePasses,
    DropSwapped,
    ExtendPlan,
    Failed,
    Forward,
    Message,
    PlanTokens,
    RunEnded,
    Sample,
    Sampled,
    Sampler,
    StartPlan,
    StopPlan,
    SwapIn,
    SwapOut,
)
from pieray.model_settings import ModelSettings
from pieray.sched.core import BatcherCore
from pieray.sched.costs import CostModel
from tests.support.digest_runner import VOCAB, DigestRunner, chain, draw, score

PAGE, PAGES = 4, 24


def u32(*numbers: int) -> bytes:
    return np.array(numbers, "<u4").tobytes()


def u64(*numbers: int) -> bytes:
    return np.array(numbers, "<u8").tobytes()


def passes(rows: list[Forward], rng: random.Random) -> list[Message]:
    """Forwards of one token with one sample, as columns, perhaps of several messages."""
    if not rows or rng.random() < 0.1:
        return list(rows)
    if len(rows) > 1 and rng.random() < 0.3:
        return [*passes(rows[:1], rng), *passes(rows[1:], rng)]
    samplers = list(dict.fromkeys(row.outputs[0].sampler for row in rows))
    return [
        DecodePasses(
            u64(*(row.ticket for row in rows)),
            u64(*(row.outputs[0].ticket for row in rows)),
            u32(*(row.queue for row in rows)),
            np.array([row.priority for row in rows], "<i4").tobytes(),
            u32(*(row.kv_len for row in rows)),
            b"".join(row.tokens for row in rows),
            u32(*(row.kv_len for row in rows)),
            u32(*(row.adapter for row in rows)),
            u32(*(len(row.pages) // 4 for row in rows)),
            b"".join(row.pages for row in rows),
            samplers,
            u32(*(samplers.index(row.outputs[0].sampler) for row in rows)),
        )
    ]


class Crowd:
    """Inferlets of some peers on one core, and what each may be told."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.runner = DigestRunner(PAGE)
        settings = ModelSettings(
            page_size=PAGE, max_batch_requests=rng.choice([2, 5, 64]), max_batch_tokens=rng.choice([3, 16, 512])
        )
        self.core = BatcherCore(
            self.runner,
            settings,
            costs=CostModel(VOCAB) if rng.random() < 0.7 else None,
            num_swap_slots=rng.choice([0, 3, 100]),
            max_swap_pages=rng.choice([1, 2, 100]),
        )
        self.time = 0.0
        self.tickets = itertools.count(1)
        self.pages = itertools.count()
        self.waiting: dict[int, Any] = {}  # by ticket: what is told of it, None for a plan
        self.told: dict[int, list[int]] = {}
        self.scores: dict[int, list[float]] = {}
        self.cancelled: set[int] = set()  # inferlets
        self.swaps: set[int] = set()  # tickets whose answer is slots

    def ticket(self, inferlet: int) -> int:
        return inferlet << 32 | next(self.tickets)

    def some_pages(self, count: int = PAGES) -> list[int]:
        return list(itertools.islice(self.pages, count))

    def submit(self, inferlet: int, *messages: Message) -> None:
        self.note(self.core.submit(f"p{inferlet % 2}", messages, self.time))

    def step(self) -> None:
        self.time += self.rng.choice([0.001, 0.001, 0.001, 1.5])
        self.note(self.core.step(self.time))
        self.core.sent()
        self.check()

    def check(self) -> None:
        table, scheduler = self.core._scheduler.table, self.core._scheduler
        for row, own in enumerate(table.own):
            assert own.plan is None or own.plan.row == row
        assert len(table) == len(table.own) == len(table.rows)
        assert scheduler.num_queued >= len(table)
        self.core._swap.check()

    def note(self, answers: list[tuple[str, Message]]) -> None:
        for peer, message in answers:
            for ticket, value in self.parts(message):
                inferlet = ticket >> 32
                assert peer == f"p{inferlet % 2}"
                assert inferlet not in self.cancelled or ticket in self.waiting
                if isinstance(message, PlanTokens):
                    self.told[ticket] += value
                    continue
                assert ticket in self.waiting, f"{ticket} ends twice: {message}"
                expected = self.waiting.pop(ticket)
                if callable(expected):
                    expected(value)

    def parts(self, message: Message) -> Iterator[tuple[int, Any]]:
        if isinstance(message, PlanTokens):
            for row in message.rows():
                if row.logprobs:
                    self.scores.setdefault(row.ticket, []).extend(np.frombuffer(row.logprobs, "<f4").tolist())
                yield row.ticket, np.frombuffer(row.tokens, "<u4").tolist()
        elif isinstance(message, Sampled):
            columns = (np.frombuffer(c, "<u8").tolist() for c in (message.tickets, message.sample_tickets))
            tokens = np.frombuffer(message.tokens, "<u4").tolist()
            for ticket, sample, token in zip(*columns, tokens, strict=True):
                yield sample, token
                yield ticket, None
        elif isinstance(message, RunEnded):
            yield message.ticket, message.error or [message.reason, message.stopped_by]
        else:
            assert isinstance(message, (Completed, Failed)), message
            value = message.value if isinstance(message, Completed) else message
            if message.ticket in self.swaps:
                yield message.ticket, np.frombuffer(value, "<u4").tolist()
            else:
                yield message.ticket, int.from_bytes(value, "little") if isinstance(value, bytes) else value


class Planner:
    """An inferlet with a plan or two."""

    def __init__(self, crowd: Crowd, inferlet: int) -> None:
        self.crowd, self.inferlet, self.rng = crowd, inferlet, crowd.rng
        self.left = self.rng.randint(1, 3)
        self.run: tuple[StartPlan, list[int]] | None = None
        self.more: list[int] = []

    def act(self) -> None:
        rng, crowd = self.rng, self.crowd
        if self.run is None and self.left:
            self.left -= 1
            self.start()
        elif self.run is not None and self.more and rng.random() < 0.6:
            count = rng.randint(1, 4)
            pages, self.more = self.more[:count], self.more[count:]
            crowd.submit(self.inferlet, ExtendPlan(self.run[0].ticket, u32(*pages)))
        elif self.run is not None and rng.random() < 0.03:
            crowd.submit(self.inferlet, StopPlan(self.run[0].ticket))

    def start(self) -> None:
        rng, crowd = self.rng, self.crowd
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 20))]
        most = rng.randint(1, PAGE * PAGES - len(prompt))
        pages = crowd.some_pages()
        num_first = rng.randint(-(-len(prompt) // PAGE), PAGES)
        chain_ = Sampler(rng.choice([0.0, 1.0]), seed=rng.randrange(9))
        stops = [rng.randrange(VOCAB) for _ in range(rng.choice([0, 1, 3, 20]))]
        plan = StartPlan(
            crowd.ticket(self.inferlet),
            self.inferlet,
            rng.randint(1, 2),
            rng.randint(-1, 1),
            u32(*pages[:num_first]),
            0,
            u32(*prompt),
            most,
            chain_,
            u32(*stops),
            [],
            [],
            0,
            rng.choice([0, 0, 3]),
            b"",
            b"",
            rng.random() < 0.3,
            b"",
        )
        self.run, self.more = (plan, prompt), pages[num_first:]
        crowd.told[plan.ticket] = []
        crowd.waiting[plan.ticket] = lambda end: self.ended(plan, prompt, stops, end)
        crowd.submit(self.inferlet, plan)

    def ended(self, plan: StartPlan, prompt: list[int], stops: list[int], end: list[Any]) -> None:
        said = self.crowd.told[plan.ticket]
        digest, expected = 0, []
        for token in prompt:
            digest = chain(digest, token)
        scores = []
        for place in range(len(said)):
            token = draw(digest, len(prompt) + place - 1, plan.sampler.seed, plan.sampler.temperature)
            scores.append(score(digest, token))
            expected.append(token)
            digest = chain(digest, token)
        assert said == expected
        if plan.is_scored:
            assert self.crowd.scores.get(plan.ticket, []) == pytest.approx(scores)
        where = next((place for place, token in enumerate(said) if token in stops), None)
        if end[0] == "stop":
            assert where == len(said) - 1
            assert end[1] == said[-1]
        elif end[0] == "length":
            assert (len(said), where) == (plan.max_tokens, None)
        else:
            assert end == ["", ""]
        self.run = None


class Driver:
    """An inferlet that drives its sequences pass by pass."""

    def __init__(self, crowd: Crowd, inferlet: int) -> None:
        self.crowd, self.inferlet, self.rng = crowd, inferlet, crowd.rng
        self.lines = [(crowd.some_pages(), [self.rng.randrange(VOCAB)], [0]) for _ in range(self.rng.randint(1, 3))]
        self.busy = [0] * len(self.lines)  # passes under way
        self.leaving: set[int] = set()  # lines that are being swapped out
        self.left = self.rng.randint(3, 40)

    def wanted(self) -> list[Forward]:
        """What goes with the next flush."""
        found = []
        for number, (pages, tokens, digests) in enumerate(self.lines):
            if number in self.leaving:
                continue
            if self.left and not self.busy[number] and self.rng.random() < 0.8 and len(tokens) < PAGE * PAGES - 3:
                self.left -= 1
                count = 2 if self.rng.random() < 0.1 else 1  # the next token is known: nobody waits for a draw
                found += [self.one(number, pages, tokens, digests) for _ in range(count)]
        return found

    def one(self, number: int, pages: list[int], tokens: list[int], digests: list[int]) -> Forward:
        rng, crowd = self.rng, self.crowd
        sampler = Sampler(rng.choice([0.0, 1.0]), seed=rng.randrange(5))
        kv_len, is_last = len(tokens) - 1, [True]
        digests.append(chain(digests[-1], tokens[-1]))
        expected = draw(digests[-1], kv_len, sampler.seed, sampler.temperature)
        used = u32(*pages[: kv_len // PAGE + 1])
        wanted = Sample(0, sampler, crowd.ticket(self.inferlet))
        ticket = crowd.ticket(self.inferlet)
        forward = Forward(ticket, self.inferlet, number, 0, used, kv_len, u32(tokens[-1]), b"", b"", [wanted])
        tokens.append(expected)
        self.busy[number] += 1

        def drawn(token: Any) -> None:
            assert token == expected
            assert is_last

        def ended(value: Any) -> None:
            assert value is None
            self.busy[number] -= 1

        crowd.waiting[forward.outputs[0].ticket], crowd.waiting[forward.ticket] = drawn, ended
        return forward

    def act(self) -> None:
        """Something else of its own, among its passes."""
        crowd, rng = self.crowd, self.rng
        pages, tokens, _ = rng.choice(self.lines)
        if rng.random() < 0.1 and len(tokens) > 1:
            ticket = crowd.ticket(self.inferlet)
            crowd.waiting[ticket] = None
            (target,) = crowd.some_pages(1)
            crowd.submit(self.inferlet, CopyTokens(ticket, self.inferlet, 9, 0, [[pages[0], 0, target, 0, 1]]))
        elif rng.random() < 0.1:
            ticket = crowd.ticket(self.inferlet)
            crowd.waiting[ticket] = None
            crowd.submit(
                self.inferlet,
                Forward(ticket, self.inferlet, 8, 0, u32(*crowd.some_pages(8)), 0, u32(*range(30)), b"", b"", []),
            )
        elif rng.random() < 0.1:
            self.swap_out(rng.randrange(len(self.lines)))

    def swap_out(self, number: int) -> None:
        """Behind passes that may be under way: a line, which waits till it knows where it has gone."""
        crowd, (pages, tokens, _) = self.crowd, self.lines[number]
        count = -(-(len(tokens) - 1) // PAGE)
        if number in self.leaving or not count:
            return
        self.leaving.add(number)
        ticket = crowd.ticket(self.inferlet)
        crowd.swaps.add(ticket)
        crowd.waiting[ticket] = lambda slots: self.swapped_out(number, count, slots)
        crowd.submit(self.inferlet, SwapOut(ticket, self.inferlet, self.rng.randint(1, 9), 0, u32(*pages[:count])))

    def swapped_out(self, number: int, count: int, slots: list[int]) -> None:
        """Somebody else has the pages; the line goes on in others, with what comes behind the swap."""
        crowd, rng, pages = self.crowd, self.rng, self.lines[number][0]
        assert len(slots) <= count
        self.leaving.remove(number)
        if rng.random() < 0.2:
            crowd.submit(self.inferlet, DropSwapped(self.inferlet, u32(*slots)))
            return
        for page in pages[: len(slots)]:
            crowd.runner.slots |= {(page, offset): (0, 0) for offset in range(PAGE)}
        order = rng.sample(range(len(slots)), len(slots))
        fresh = crowd.some_pages(len(slots))
        pages[: len(slots)] = fresh
        ticket = crowd.ticket(self.inferlet)
        crowd.waiting[ticket] = None
        swap = SwapIn(
            ticket,
            self.inferlet,
            rng.randint(1, 9),
            0,
            u32(*(slots[place] for place in order)),
            u32(*(fresh[place] for place in order)),
        )
        crowd.submit(self.inferlet, swap)


@pytest.mark.parametrize("seed", range(40))
def test_any_mix_of_rows_and_commands_says_what_each_says_alone(seed: int) -> None:
    rng = random.Random(seed)
    crowd = Crowd(rng)
    people: dict[int, Planner | Driver] = {
        inferlet: rng.choice([Planner, Driver])(crowd, inferlet) for inferlet in range(1, rng.randint(3, 9))
    }
    for _ in range(3000):
        asked: dict[str, list[Forward]] = {}
        for inferlet, one in list(people.items()):
            one.act()
            if isinstance(one, Driver):
                asked.setdefault(f"p{inferlet % 2}", []).extend(one.wanted())
            if rng.random() < 0.002:
                ack = crowd.ticket(inferlet)
                crowd.cancelled.add(inferlet)
                for ticket in [ticket for ticket in crowd.waiting if ticket >> 32 == inferlet]:
                    del crowd.waiting[ticket]
                crowd.waiting[ack] = None
                asked[f"p{inferlet % 2}"] = [f for f in asked.get(f"p{inferlet % 2}", []) if f.inferlet != inferlet]
                crowd.submit(inferlet, CancelInferlet(ack, inferlet))
                del people[inferlet]
        for peer, rows in asked.items():
            crowd.note(crowd.core.submit(peer, passes(rows, rng), crowd.time))
        crowd.step()
        is_done = all(one.left == 0 and (isinstance(one, Driver) or one.run is None) for one in people.values())
        if is_done and not crowd.core.has_work:
            break
        for one in people.values():  # those that wait for pages get them in the end
            if isinstance(one, Planner) and not crowd.core.has_work:
                one.act()
    assert crowd.waiting == {}
    scheduler = crowd.core._scheduler
    assert (scheduler.num_queued, scheduler.queues.num_tokens, len(scheduler.table)) == (0, 0, 0)
    assert crowd.core.plans.num_running == 0
    assert not scheduler.queues.by_inferlet
    assert not scheduler._num_passes.values.any()
    assert not scheduler._has_commands.values.any()
    assert not scheduler.queues.num_active
    swap = crowd.core.stats()["swap"]
    assert swap["used"] == 0
    assert swap["swapped_out"] >= swap["swapped_in"]


def test_a_pass_that_fails_fails_alone_with_what_reads_its_slot() -> None:
    crowd = Crowd(random.Random(0))
    crowd.core = BatcherCore(crowd.runner, ModelSettings(page_size=PAGE))
    driver, other = Driver(crowd, 2), Driver(crowd, 4)
    rows = [one.one(0, *one.lines[0]) for one in (driver, other)]
    bad = replace(rows[0], pages=u32(*crowd.some_pages(1)), kv_len=3)  # slots before it hold nothing
    failures: list[Any] = []
    crowd.waiting[bad.ticket] = crowd.waiting[bad.outputs[0].ticket] = failures.append
    crowd.note(crowd.core.submit("p0", passes([bad, rows[1]], random.Random(3)), 0.0))
    crowd.step()
    assert [failure.code for failure in failures] == ["internal", "internal"]
    assert other.busy == [0] * len(other.busy)
    pages = bad.pages + u32(*crowd.some_pages(1))
    later = replace(bad, ticket=crowd.ticket(2), kv_len=4, pages=pages, outputs=[])
    crowd.waiting[later.ticket] = failures.append
    crowd.note(crowd.core.submit("p0", [later], 0.0))
    assert failures[-1].code == "cancelled"


@pytest.mark.parametrize("change", ["tickets", "pages", "sampler_of", "tokens"])
def test_columns_that_do_not_fit_together_fail_all_their_tickets(change: str) -> None:
    crowd = Crowd(random.Random(1))
    driver = Driver(crowd, 2)
    (message,) = passes([driver.one(0, *driver.lines[0])], random.Random(3))
    assert isinstance(message, DecodePasses)
    wrong = {"tickets": message.tickets * 2, "pages": b"", "sampler_of": u32(7), "tokens": b"abc"}
    answers = crowd.core.submit("p0", [replace(message, **{change: wrong[change]})], 0.0)
    assert {answer.code for _, answer in answers if isinstance(answer, Failed)} == {"invalid"}
    assert {m.ticket for _, m in answers if isinstance(m, Failed)} == {
        *np.frombuffer(message.tickets + message.sample_tickets, "<u8").tolist()
    }
    assert not crowd.core.has_work
