"""Any order of pauses, edits, cuts, forks and cancels: the reference's tokens, and all pages accounted for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from plan_bench import PlanBench, u32
from rounds import examples

from tests.support.digest_runner import reference


@dataclass
class Guest:
    """What one plan should have drawn: a prompt, and who draws from which token on."""

    prompt: list[int]
    plan: int
    pages: object
    most: int
    said: list[int] = field(default_factory=list)
    draws: list[tuple[int, int, float]] = field(default_factory=list)  # from this drawn token on: seed, temperature

    def expected(self, count: int) -> list[int]:
        line: list[int] = []
        for index, (start, seed, temperature) in enumerate(self.draws):
            end = self.draws[index + 1][0] if index + 1 < len(self.draws) else count
            if end > start:
                line += reference([*self.prompt, *line], min(end, count) - start, seed, temperature)
        return line[:count]


class Plans(RuleBasedStateMachine):
    """Several plans of one inferlet, on few pages."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = PlanBench(num_pages=150, max_batch_tokens=7, max_batch_requests=3)
        self.guests: list[Guest] = []

    @precondition(lambda self: len(self.guests) < 4)
    @rule(
        prompt=st.lists(st.integers(1, 255), min_size=1, max_size=12),
        most=st.integers(1, 60),
        drafts=st.integers(0, 4),
        seed=st.integers(0, 3),
    )
    def start(self, prompt: list[int], most: int, drafts: int, seed: int) -> None:
        bench, temperature = self.bench, 1.0 if seed else 0.0
        pages = bench.handlers.kv.alloc(-(-(len(prompt) + most - 1) // 4))
        sampler = bench.handlers.samplers.create(temperature, 0, 1.0, 0.0, 1.0, seed)
        plan = bench.plan(prompt, most, pages=pages, sampler=sampler, queue=bench.handlers.queues.create(""))
        bench.handlers.plans.set_drafter(plan, drafts, u32(*reference(prompt, 20)))
        bench.handlers.plans.start(plan)
        self.guests.append(Guest(prompt, plan, pages, most, draws=[(0, seed, temperature)]))

    @rule()
    def preempt(self) -> None:
        """Others want its pages; they are back when it asks for them."""
        with self.bench.parts.lock:
            self.bench.outbox.preempt(())
        self.bench.turn()
        self.bench.free += self.bench.device.released
        self.bench.device.released.clear()

    @rule(count=st.integers(1, 5))
    def turn(self, count: int) -> None:
        for _ in range(count):
            self.bench.turn()

    @precondition(lambda self: self.guests)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        guest = data.draw(st.sampled_from(self.guests))
        guest.said += self.bench.next(guest.plan)
        self.check(guest)

    def pause(self, guest: Guest) -> None:
        self.bench.wait(self.bench.handlers.plans.pause(guest.plan))
        while more := self.bench.next(guest.plan):
            guest.said += more
        assert len(guest.said) == self.bench.state_of(guest.plan)["num_tokens"]
        self.check(guest)

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), seed=st.integers(0, 3))
    def edit(self, data: st.DataObject, seed: int) -> None:
        guest, bench = data.draw(st.sampled_from(self.guests)), self.bench
        self.pause(guest)
        keep = data.draw(st.integers(0, len(guest.said)))
        bench.handlers.plans.truncate(guest.plan, keep)
        del guest.said[keep:]
        temperature = 1.0 if seed else 0.0
        sampler = bench.handlers.samplers.create(temperature, 0, 1.0, 0.0, 1.0, seed)
        bench.handlers.plans.set_sampler(guest.plan, sampler)
        bench.handlers.samplers.free(sampler)
        guest.draws = [draw for draw in guest.draws if draw[0] < keep] + [(keep, seed, temperature)]
        bench.handlers.plans.resume(guest.plan)

    @precondition(lambda self: self.guests)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        """A second plan on a copy-on-write copy of what the first has drawn."""
        guest, bench = data.draw(st.sampled_from(self.guests)), self.bench
        self.pause(guest)
        line = guest.prompt + guest.said
        kv_len = bench.state_of(guest.plan)["kv_len"]
        if kv_len and len(line) > kv_len and len(self.guests) < 6:
            used = guest.pages[: -(-kv_len // 4)]
            pages = [*bench.handlers.kv.fork(used).tolist(), *bench.handlers.kv.alloc(5).tolist()]
            queue = bench.handlers.queues.create("")
            plan = bench.plan(line[kv_len:], 12, pages=u32(*pages), kv_len=kv_len, queue=queue)
            bench.handlers.plans.start(plan)
            self.guests.append(Guest(line, plan, u32(*pages), 12, draws=[(0, 0, 0.0)]))
        if bench.state_of(guest.plan)["state"] == "paused":
            bench.handlers.plans.resume(guest.plan)

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), should_wait=st.booleans())
    def end(self, data: st.DataObject, should_wait: bool) -> None:
        guest, bench = data.draw(st.sampled_from(self.guests)), self.bench
        if should_wait:
            bench.wait(bench.handlers.plans.cancel(guest.plan))
        bench.handlers.plans.close(guest.plan)
        bench.handlers.kv.free(guest.pages)
        self.guests.remove(guest)

    def check(self, guest: Guest) -> None:
        assert guest.said == guest.expected(len(guest.said))

    @invariant()
    def pages_add_up(self) -> None:
        self.bench.check()

    def teardown(self) -> None:
        bench = self.bench
        for guest in self.guests:
            while more := bench.next(guest.plan):
                guest.said += more
            self.check(guest)
            assert len(guest.said) == guest.most, bench.state_of(guest.plan)
            bench.handlers.plans.close(guest.plan)
            bench.handlers.kv.free(guest.pages)
        bench.run()
        bench.check()
        assert bench.pages.num_bound == 0
        assert not bench.core.has_work
        assert bench.core.plans.num_running == 0


Plans.TestCase.settings = settings(
    max_examples=examples(25),
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.reuse, Phase.generate),
    report_multiple_bugs=False,
)
TestPlans: Callable[..., object] = Plans.TestCase
