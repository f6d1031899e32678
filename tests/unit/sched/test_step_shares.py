"""Scheduler with a cost model and a made-up clock: who gets how much of the device's time."""

import random

import numpy as np
import pytest
from rounds import seeds

from pieray.messages import GREEDY, CopyTokens, Forward, Logits, Logprobs, StartPlan, SwapOut
from pieray.sched.accounts import Demand
from pieray.sched.commands import Command, CopyCommand, ForwardCommand
from pieray.sched.costs import CostModel, Kind
from pieray.sched.lanes import Lanes, Registry
from pieray.sched.plans import PlanCommand
from pieray.sched.scheduler import Scheduler
from pieray.sched.shares import ALONE_STEPS, BURST_STEPS, SLICE_OF_STEP, Shares
from pieray.sched.step_plan import StepPlan
from pieray.sched.swap import SwapCommand, SwapOutCommand
from pieray.sched.swap_slots import SwapSlots

PAGE = 16


def u32(*numbers: int) -> bytes:
    return np.array(numbers, "<u4").tobytes()


def seconds(step: float = 0.7e-3, token: float = 1e-4) -> list[float]:
    costs = [1e-9] * len(Kind)
    costs[Kind.STEP], costs[Kind.TOKENS], costs[Kind.LOGITS], costs[Kind.ATTENTION] = step, token, 5e-4, 0.0
    costs[Kind.LOGPROBS], costs[Kind.VALUES], costs[Kind.COPIES] = 1e-4, 1e-8, 2e-4
    costs[Kind.SWAPS] = 1e-4
    return costs


class Device:
    """Runs steps on a clock of its own: each takes exactly what it costs."""

    def __init__(
        self, costs: list[float] | None = None, weights: dict[str, float] | None = None, **limits: int
    ) -> None:
        self.costs, weights = CostModel(1000, 64, costs or seconds()), weights or {}
        self.scheduler = Scheduler(
            PAGE,
            limits.get("tokens", 8192),
            limits.get("requests", 1024),
            costs=self.costs,
            weight_of=lambda tenant: weights.get(tenant, 1.0),
        )
        self.swap_slots = SwapSlots(1 << 20)
        self.now = 0.0
        self.ticket = 0
        self.had: dict[int, float] = {}  # seconds of each inferlet, beyond the steps themselves
        self.tokens: dict[int, int] = {}  # drawn by plans
        self.gaps: dict[int, list[float]] = {}
        self._told: dict[int, float] = {}
        self.lengths: list[float] = []

    def open(self, inferlet: int, tenant: str) -> None:
        self.scheduler.introduce(("p", inferlet), tenant)

    def plan(
        self, inferlet: int, *, length: int = 1, queue: int = 1, kv_len: int = 0, priority: int = 0, draw_work: int = 0
    ) -> None:
        self.ticket += 1
        base = 100_000 * inferlet + 300 * queue  # queues of an inferlet share no page
        pages = u32(*range(base, base + 300))
        message = StartPlan(
            self.ticket,
            inferlet,
            queue,
            priority,
            pages,
            kv_len,
            u32(*range(length)),
            1 << 20,
            GREEDY,
            b"",
            [],
            [],
            0,
            0,
            b"",
            b"",
            False,
            b"",
        )
        command = PlanCommand("p", message, PAGE)
        command.draw_work = draw_work
        self._submit(command)

    def forward(
        self, inferlet: int, length: int, outputs=(), *, queue: int = 1, priority: int = 0, program_work: int = 0
    ) -> ForwardCommand:
        self.ticket += 1
        base = 100_000 * inferlet + 300 * queue
        pages = u32(*range(base, base + -(-length // PAGE)))
        message = Forward(
            self.ticket, inferlet, queue, priority, pages, 0, u32(*range(length)), b"", b"", list(outputs)
        )
        command = ForwardCommand("p", message, PAGE)
        command.program_work, command.programs = program_work, [None] * bool(program_work)
        self._submit(command)
        return command

    def copy(self, inferlet: int, queue: int) -> None:
        self.ticket += 1
        self._submit(CopyCommand("p", CopyTokens(self.ticket, inferlet, queue, 0, [[1, 0, 2 + queue, 0, 1]]), PAGE))

    def swap(self, inferlet: int, queue: int, num_pages: int) -> None:
        self.ticket += 1
        message = SwapOut(self.ticket, inferlet, queue, 0, u32(*range(num_pages)))
        self._submit(SwapOutCommand("p", message, self.swap_slots))

    def _submit(self, command: Command) -> None:
        assert self.scheduler.submit(command, self.now)

    def step(self) -> StepPlan:
        plan = self.scheduler.next_step(self.now)
        plan.work[Kind.STEP] = 1.0
        took = self.costs.predict(plan.work)
        self.now += took
        self.lengths.append(took)
        for copy in plan.copies:
            first, last = copy.step_range
            self._had(copy.inferlet, (last - first) * self.costs.seconds[copy.cost])
            if copy.is_scheduled:
                if isinstance(copy, SwapCommand):
                    copy.undo()
                self.scheduler.finish(copy)
        table = self.scheduler.table
        for lane in plan.group.lanes.tolist() if plan.group is not None else ():
            inferlet = self.scheduler.lanes.key(lane)[1]
            self._had(inferlet, self.costs.seconds[Kind.TOKENS])
            self._draw(inferlet)
        if plan.group is not None:
            table.advance(plan.group, np.full(len(plan.group), 7))
        for chunk in plan.forwards:
            command = chunk.command
            cost = chunk.num_tokens * self.costs.seconds[Kind.TOKENS] + sum(map(self.costs.output, chunk.outputs))
            self._had(command.inferlet, cost)
            if isinstance(command, PlanCommand):
                num_due = command.num_due
                is_drawn = bool(command.take([7] * len(command.draws(chunk.start, chunk.start + chunk.num_tokens))))
                self.scheduler.drawn(command, num_due)
                if is_drawn:
                    self._draw(command.inferlet)
            elif chunk.is_last:
                self.scheduler.finish(command)
        return plan

    def _had(self, inferlet: int, cost: float) -> None:
        self.had[inferlet] = self.had.get(inferlet, 0.0) + cost

    def _draw(self, inferlet: int) -> None:
        self.tokens[inferlet] = self.tokens.get(inferlet, 0) + 1
        self.gaps.setdefault(inferlet, []).append(self.now - self._told.get(inferlet, self.now))
        self._told[inferlet] = self.now

    def run(self, steps: int, feed=lambda: None) -> None:
        """Steps after the first bursts, counted from there."""
        for count in range(2 * steps):
            if count == steps:
                self.had, self.tokens, self.gaps, self.lengths = {}, {}, {}, []
            feed()
            self.step()


def prefills(device: Device, inferlet: int, queues: int = 1, priority: int = 0):
    """A flood: each queue always has a prefill of 1,000 tokens."""

    def feed() -> None:
        lane = device.scheduler.queues.by_inferlet.get(("p", inferlet))
        for queue in range(1, queues + 1):
            if lane is None or queue not in lane.queues:
                device.forward(inferlet, 1000, queue=queue, priority=priority)

    return feed


HOSTILE = {
    "prefills": lambda d: prefills(d, 2, 20),
    "urgent prefills": lambda d: prefills(d, 2, 20, priority=100),
    "logits": lambda d: lambda: 2 in busy(d) or d.forward(2, 1000, [Logits(row) for row in range(1000)]),
    "many outputs of one row": lambda d: lambda: 2 in busy(d) or d.forward(2, 1, [Logits(0)] * 500),
    "uneven log-probabilities": lambda d: (
        lambda: (
            2 in busy(d) or d.forward(2, 200, [Logprobs(row, bytes(800_000 if not row else 4)) for row in range(200)])
        )
    ),
    "plans": lambda d: lambda: 2 in busy(d) or [d.plan(2, queue=queue) for queue in range(1, 65)],
    "copies": lambda d: lambda: 2 in busy(d) or [d.copy(2, queue) for queue in range(1, 65)],
    "swaps": lambda d: lambda: 2 in busy(d) or [d.swap(2, queue, 500) for queue in range(1, 9)],
    "short passes": lambda d: lambda: 2 in busy(d) or [d.forward(2, 16, queue=queue) for queue in range(1, 65)],
}


def busy(device: Device) -> set[int]:
    return {key[1] for key in device.scheduler.queues.by_inferlet}


@pytest.mark.slow
@pytest.mark.parametrize("step_s", [0.7e-3, 10e-3])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_inferlet_takes_its_share_and_moves_no_gap_by_three_steps(name, step_s):
    device = Device(seconds(step_s))
    device.plan(1)
    bare = device.costs.bare
    device.run(400, HOSTILE[name](device))
    assert max(device.gaps[1]) <= 4 * bare + 1e-9, name
    assert device.tokens[1] / sum(device.lengths) >= 0.5 / bare, name
    most = 2.0 if name in ("prefills", "urgent prefills", "logits") else 20.0
    assert sum(device.lengths) / device.tokens[1] >= bare * 1.2 or name == "short passes"
    assert device.had[2] * most >= device.had[1]  # it is not starved


@pytest.mark.slow
@pytest.mark.parametrize("commands_s", [0.2e-3, 2e-3, 80e-3])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_commands_add_to_any_step_comes_out_of_their_share_and_nobody_starves(name, commands_s):
    """The victim is a row: steps without commands are shorter by `commands_s`, 100 bare steps at the most."""
    costs = seconds()
    costs[Kind.COMMANDS] = commands_s
    device = Device(costs)
    device.plan(1)
    bare = device.costs.bare
    device.run(1500, HOSTILE[name](device))
    total = sum(device.lengths)
    assert device.tokens[1] == len(device.lengths), "the victim is in each step"
    assert device.tokens[1] / total >= 0.45 / bare, name
    assert sum(device.gaps[1]) / len(device.gaps[1]) <= 2.2 * bare
    if name == "plans":  # rows as well
        return
    alone = [length for length in device.lengths if length <= bare * 1.001]
    assert len(alone) >= 0.4 * len(device.lengths) or commands_s < bare, "commands come together"
    paid = commands_s * (len(device.lengths) - len(alone))
    assert device.had[2] + paid >= 0.3 * total, "it has its share"
    is_enough = name not in ("copies", "swaps") or commands_s < 10e-3  # work, at one time
    assert device.had[2] >= 0.5 * paid or not is_enough, "half of that, at least, is for its work"


@pytest.mark.slow
@pytest.mark.parametrize("commands_s", [2e-3, 5e-3, 50e-3])
@pytest.mark.parametrize(("others", "own"), [(1, 0), (1, 60), (60, 0)])
def test_commands_join_rows_again_and_again_however_much_of_the_share_rows_take(others, own, commands_s):
    """Rows of the inferlet's own, and those of many others, want all that it may have."""
    costs = seconds(5e-3)
    costs[Kind.COMMANDS] = commands_s
    device = Device(costs)
    for inferlet in range(1, others + 1):
        device.plan(inferlet)
    for queue in range(2, 2 + own):
        device.plan(900, queue=queue)
    command, began, longest, ended = device.forward(900, 64), device.now, 0.0, 0
    device.tokens.clear()
    for _ in range(3000):
        device.step()
        longest = max(longest, device.now - began)
        if command.num_done == 64:
            command, began, ended = device.forward(900, 64), device.now, ended + 1
    assert longest < 1.5 + 2 * commands_s  # the rows of its own come first, till it has aged
    assert ended >= 10
    alone_s = costs[Kind.STEP] + others * costs[Kind.TOKENS]
    assert min(device.tokens[inferlet] for inferlet in range(1, others + 1)) >= 0.45 * device.now / alone_s


@pytest.mark.slow
@pytest.mark.parametrize("is_swap", [False, True])
def test_commands_of_a_tenant_whose_rows_take_all_of_its_share_have_their_part_of_it(is_swap):
    """One of 21 inferlets of a tenant that has half of the device: its part pays for its work and for joining rows."""
    costs = seconds(0.3e-3, 4e-5)
    costs[Kind.COMMANDS] = 1.5e-3
    device = Device(costs)
    device.open(99, "other")
    device.plan(99)
    for inferlet in range(1, 21):
        device.open(inferlet, "busy")
        device.plan(inferlet)
    device.open(50, "busy")
    longest, ended, began = 0.0, 0, device.now
    for _ in range(3000):
        if 50 not in busy(device):
            ended, began = ended + 1, device.now
            _ = device.swap(50, 1, 4) if is_swap else device.forward(50, 64)
        device.step()
        longest = max(longest, device.now - began)
    each = costs[Kind.COMMANDS] + (4 * costs[Kind.SWAPS] if is_swap else 64 * costs[Kind.TOKENS])
    part = SLICE_OF_STEP / (1 + SLICE_OF_STEP) / 21
    assert ended >= 0.7 * part * device.now / each
    assert longest <= 2 * each / part
    assert device.tokens[99] >= 0.5 * device.now / device.costs.bare


@pytest.mark.parametrize("commands_s", [0.2e-3, 2e-3, 20e-3])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_what_commands_add_beside_rows_of_another_tenant_is_paid_for_by_theirs(commands_s, weight):
    """A tenant decodes and the other floods: what is left to the first does not depend on what commands cost."""
    costs = seconds()
    costs[Kind.COMMANDS] = commands_s
    device = Device(costs, {"rows": weight})
    device.open(1, "rows")
    device.open(2, "flood")
    device.plan(1)
    device.run(2000, prefills(device, 2, 20))
    kept = device.tokens[1] * device.costs.bare / sum(device.lengths)
    fair = 1 / (1 + SLICE_OF_STEP * 2 / (1 + weight))
    assert 0.95 * fair <= kept <= 1.15 * fair  # where commands cost 25 steps they come together, about ten times here
    assert device.had[2] > 0.0


@pytest.mark.parametrize("commands_s", [0.5e-3, 0.8e-3])
def test_a_step_that_commands_join_is_longer_by_three_bare_steps_at_most(commands_s):
    for tenants in ("one", "one"), ("one", "other"):
        costs = seconds()
        costs[Kind.COMMANDS] = commands_s
        device = Device(costs)
        for inferlet, tenant in enumerate(tenants, 1):
            device.open(inferlet, tenant)
        device.plan(1)
        device.run(500, prefills(device, 2, 20))
        assert max(device.gaps[1]) <= 4 * device.costs.bare


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(20))
def test_commands_and_rows_of_all_tenants_have_their_share_and_nobody_starves(seed):
    """Tenants of random weights with rows, commands or both, whatever these add to a step: who decodes keeps what its
    tenant's weight gives it, and everybody's work goes on."""
    rng = random.Random(seed)
    costs = seconds(rng.choice([0.3e-3, 5e-3]))
    costs[Kind.COMMANDS] = rng.choice([0.1, 1.0, 5.0, 10.0]) * costs[Kind.STEP]
    weights = {f"t{n}": rng.choice([1.0, 1.0, 4.0]) for n in range(rng.randint(2, 4))}
    device, feeds, tenant_of = Device(costs, weights), [], {}
    for n, tenant in enumerate(weights):
        for inferlet in range(100 * n + 1, 100 * n + 1 + rng.randint(1, 6)):
            device.open(inferlet, tenant)
            tenant_of[inferlet] = tenant
            if rng.random() < 0.6:
                device.plan(inferlet)
            else:
                feeds.append(prefills(device, inferlet, rng.randint(1, 3)))
    for _ in range(4500):
        for feed in feeds:
            feed()
        device.step()
    assert min(device.had.get(inferlet, 0.0) for inferlet in tenant_of) > 0.0
    decoding = [inferlet for inferlet in tenant_of if device.tokens.get(inferlet)]
    for inferlet in decoding:
        part = weights[tenant_of[inferlet]] / sum(weights.values())
        mates = sum(other == tenant_of[inferlet] for other in tenant_of.values())
        assert device.tokens[inferlet] * device.costs.bare >= 0.4 * part / mates * device.now


def test_a_short_prompt_beside_rows_runs_at_once_whatever_commands_add():
    costs = seconds()
    costs[Kind.COMMANDS] = 5e-3
    device = Device(costs)
    for inferlet in range(1, 33):
        device.plan(inferlet)
    device.run(50)
    for newcomer in range(101, 105):
        command = device.forward(newcomer, 16)
        device.step()
        assert command.num_done == 16


def test_a_backlog_that_has_aged_is_held_to_its_share_too():
    """The backlog is far older than max_wait_s, and still a neighbour takes part in every step."""
    device = Device()
    feed = prefills(device, 2, 20)
    feed()
    device.now += 1000.0
    device.plan(1)
    bare = device.costs.bare
    device.run(300, feed)
    gaps = sorted(device.gaps[1])
    assert gaps[len(gaps) // 2] <= 2.1 * bare
    assert gaps[-1] <= 4 * bare


def test_a_crowd_of_floods_leaves_a_neighbour_its_gaps():
    device = Device()
    device.plan(1)
    feeds = [prefills(device, inferlet, 3) for inferlet in range(2, 22)]
    device.run(400, lambda: [feed() for feed in feeds])
    assert max(device.gaps[1]) <= 4 * device.costs.bare
    shares = [device.had[inferlet] for inferlet in range(2, 22)]
    assert max(shares) <= 2.5 * min(shares)


def test_tenants_first_then_inferlets():
    """A tenant's thirty inferlets together take no more of the other tenant's speed than one would."""
    device = Device()
    device.open(1, "small")
    device.plan(1)
    for inferlet in range(2, 32):
        device.open(inferlet, "large")
        device.plan(inferlet)
    feeds = [prefills(device, inferlet) for inferlet in range(32, 42)]
    for inferlet in range(32, 42):
        device.open(inferlet, "large")
    device.run(800, lambda: [feed() for feed in feeds])
    bare = device.costs.bare
    assert max(device.gaps[1]) <= 4 * bare
    assert device.tokens[1] / sum(device.lengths) >= 0.5 / bare
    assert min(device.tokens.get(inferlet, 0) for inferlet in range(2, 32)) > 0


def test_well_behaved_decodes_share_every_step():
    device = Device()
    for inferlet in range(1, 65):
        device.plan(inferlet)
    device.run(20)
    assert set(device.tokens.values()) == {20}


def test_equals_with_many_sequences_share_every_step():
    device = Device()
    for inferlet in (1, 2):
        for queue in range(1, 33):
            device.plan(inferlet, queue=queue)
    device.run(100)
    assert device.tokens == {1: 3200, 2: 3200}


def test_an_inferlet_alone_has_all_of_the_device_in_short_slices():
    device = Device()
    feed = prefills(device, 2)
    device.run(100, feed)
    bare = device.costs.bare
    assert max(device.lengths) <= (ALONE_STEPS + 1) * bare
    assert device.had[2] >= 0.8 * sum(device.lengths)
    device.plan(1)  # a newcomer waits for no more than the step in progress
    began = device.now
    while not device.tokens.get(1):
        feed()
        device.step()
    assert device.now - began <= 4 * bare


def test_an_inferlet_alone_decodes_all_its_sequences_in_every_step():
    device = Device()
    for queue in range(1, 257):
        device.plan(1, queue=queue)
    device.run(10)
    assert device.tokens == {1: 2560}


def test_a_neighbour_that_asks_token_by_token_is_waited_for_by_short_slices():
    """It is away at the beginning of every other step, and its passes never wait for a long one."""
    device = Device()
    feed = prefills(device, 2, 20)
    waits = []
    for count in range(400):
        feed()
        device.step()
        if count > 100:
            device.now += 1e-5
        command = device.forward(1, 1)
        began = device.now
        while not command.num_done:
            feed()
            device.step()
        waits.append(device.now - began)
    assert max(waits[100:]) <= 3 * device.costs.bare
    assert max(device.lengths[-200:]) <= 3 * device.costs.bare


def test_a_short_prompt_of_a_newcomer_runs_at_once():
    device = Device()
    for inferlet in range(1, 33):
        device.plan(inferlet)
    device.run(50)
    command = device.forward(99, 100)
    steps = 0
    while command.num_done < 100:
        device.step()
        steps += 1
    assert steps <= 5
    assert 100 * device.costs.seconds[Kind.TOKENS] < BURST_STEPS * device.costs.bare


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(8))
def test_nobody_with_a_backlog_gets_less_than_a_share_and_nothing_is_lost(seed):
    """Random inferlets of random tenants with random floods; each who always wants more gets at least its share of
    what all of them get beyond their steps, less what accounts may fall behind; no step is empty; all work ends."""
    rng = random.Random(seed)
    device = Device(seconds(rng.choice([1e-4, 1e-3, 1e-2]), rng.choice([2e-5, 1e-4])))
    tenants = [f"t{i}" for i in range(rng.randint(1, 3))]
    owner = {inferlet: rng.choice(tenants) for inferlet in range(1, rng.randint(4, 9))}
    floods = [inferlet for inferlet in owner if rng.random() < 0.6]
    feeds = [prefills(device, inferlet, rng.randint(1, 6), rng.randint(-3, 3)) for inferlet in floods]
    for inferlet, tenant in owner.items():
        device.open(inferlet, tenant)
        if inferlet not in floods:
            device.plan(inferlet, kv_len=rng.randrange(200))
    for _ in range(1500):
        for feed in feeds:
            feed()
        plan = device.step()
        assert plan.num_requests
    device.had, device.lengths = {}, []
    for _ in range(1500):
        for feed in feeds:
            feed()
        assert device.step().num_requests
    total = sum(device.had.values())
    quantum = 2 * BURST_STEPS * device.costs.bare
    active = set(owner.values())
    for inferlet in floods:
        peers = sum(tenant == owner[inferlet] for tenant in owner.values())
        share = total / len(active) / peers
        assert device.had.get(inferlet, 0.0) >= 0.5 * share - quantum, (inferlet, device.had, owner, floods)
    device.scheduler.former.costs = None  # to the end, at once
    for inferlet in floods:
        for _ in range(10_000):
            if inferlet not in busy(device):
                break
            device.step()
        assert inferlet not in busy(device)


def test_outputs_of_one_row_are_spread_over_steps_each_once():
    device = Device()
    device.plan(1)
    command = device.forward(2, 3, [Logits(row, ticket) for ticket, row in enumerate([2, 0, *[1] * 40])])
    answered, rows = [], []
    while 2 in busy(device):
        for chunk in device.step().forwards:
            if chunk.command is command:
                answered += [output.ticket for output in chunk.outputs]
                rows.append((chunk.start, chunk.num_tokens))
                assert all(chunk.start <= output.row < chunk.start + chunk.num_tokens for output in chunk.outputs)
    assert sorted(answered) == list(range(42))
    assert len(rows) > 5
    assert rows.count((1, 1)) > 3  # the token of a row runs again for what is left of its outputs


@pytest.mark.parametrize(("weights", "num_more"), [({}, 2), ({"a": 3.0}, 0), ({"a": 0.5, "b": 2.0}, 2)])
def test_tenants_share_by_their_weights(weights, num_more):
    """Two that always want more than there is, prefills of any number of inferlets each."""
    device = Device(weights=weights)
    device.open(1, "a")
    device.open(2, "b")
    device.open(9, "c")
    device.plan(9)
    feeds = [prefills(device, 1, queues=4), prefills(device, 2, queues=4)]
    for inferlet in range(3, 3 + num_more):
        device.open(inferlet, "b")
        feeds.append(prefills(device, inferlet))

    def feed():
        for one in feeds:
            one()

    device.run(500, feed)
    had_b = device.had[2] + sum(device.had.get(inferlet, 0.0) for inferlet in range(3, 3 + num_more))
    assert device.had[1] / had_b == pytest.approx(weights.get("a", 1.0) / weights.get("b", 1.0), rel=0.1)
    assert device.tokens[9] == 500


def test_rows_that_were_chosen_stay_for_some_steps_and_all_have_their_turn():
    """Accounts are looked at once in nine steps, and shares are what they are where they are looked at in each."""
    device = Device()
    device.plan(1)
    for queue in range(1, 65):
        device.plan(2, queue=queue)
    former, looks = device.scheduler.former, []
    begin = former._shares.begin
    former._shares.begin = lambda *given, **more: looks.append(1) or begin(*given, **more)
    device.run(900)
    assert len(looks) <= 900 * 2 / 8 + 70  # two runs, the first of which has the prompts
    assert device.tokens[1] == 900
    assert device.had[2] == pytest.approx(SLICE_OF_STEP * 900 * device.costs.bare, rel=0.1)
    drawn = [device.scheduler.table.rows["kv_len"][row] for row in range(len(device.scheduler.table))]
    assert min(sorted(drawn)[:64]) >= 0.8 * device.tokens[2] / 64


def test_rows_that_stay_leave_at_once_for_a_newcomer():
    device = Device()
    device.plan(1)
    for queue in range(1, 65):
        device.plan(2, queue=queue)
    for count in range(60):
        device.step()
        if count > 40:
            device.plan(100 + count)
            device.step()
            assert device.tokens.get(100 + count), "its prompt has run"


@pytest.mark.parametrize("tenants", [("a", "a"), ("a", "b")], ids=["one tenant", "two tenants"])
def test_what_an_inferlet_has_outside_of_steps_counts_as_its_own(tenants):
    """Images are seen beside the steps: whoever has many of them seen computes less in the steps."""
    device = Device()
    for inferlet, tenant in enumerate(tenants, 1):
        device.open(inferlet, tenant)
    feeds, aside = [prefills(device, 1, 4), prefills(device, 2, 4)], 0.0

    def feed() -> None:
        nonlocal aside
        aside += 2e-4
        device.scheduler.charge(("p", 2), tenants[1], 2e-4)
        device.scheduler.charge(("gone", 9), "nobody", 1.0)
        for one in feeds:
            one()

    device.run(500, feed)
    assert device.had[1] == pytest.approx(device.had[2] + aside / 2, rel=0.1)
    assert device.had[1] > 1.1 * device.had[2]


def test_what_an_inferlet_had_that_has_ended_counts_as_its_tenants():
    device = Device()
    for inferlet, tenant in enumerate("ab", 1):
        device.open(inferlet, tenant)
    feeds, aside = [prefills(device, 1, 4), prefills(device, 2, 4)], 0.0

    def feed() -> None:
        nonlocal aside
        aside += 2e-4
        device.scheduler.charge(("gone", 9), "b", 2e-4)
        for one in feeds:
            one()

    device.run(500, feed)
    assert device.had[1] == pytest.approx(device.had[2] + aside, rel=0.1)


def test_what_is_had_outside_of_steps_is_not_had_again_with_the_steps_that_are_like_the_last():
    def spent(order: str) -> float:
        lanes: Lanes = Registry()
        shares = Shares(lanes)
        both = [lanes.open(("p", inferlet)) for inferlet in (1, 2)]
        for lane, tenant in zip(both, "ab", strict=True):
            shares.introduce(lane, tenant)
            shares.arrive(lane)
        demands = [Demand(lane, shares.account(lane), 1e-4, is_row=True) for lane in both]
        shares.begin(0.0, demands, np.zeros(0, np.int64), np.zeros(0), 1e-3, 1e-4)
        for demand in demands:
            shares.charge(demand.account, 1e-4, is_decode=True)
        for what in order.split():
            if what == "image":
                shares.charge_aside(both[0], 0.5)
            else:
                shares.repeat(8)
        return shares.account(both[0]).tenant.spent

    assert spent("image steps") == pytest.approx(spent("steps image"))


def test_what_tensor_programs_compute_counts_against_their_inferlet() -> None:
    """64 rows whose draws take 2 ms each, and prompts of which a token takes 10 ms, beside one who decodes."""
    costs = seconds()
    costs[Kind.PROGRAMS] = 1e-3
    for flood in ("rows", "prompts"):
        device = Device(costs)
        device.plan(1)
        if flood == "rows":
            for queue in range(1, 65):
                device.plan(2, queue=queue, draw_work=2_000_000)
        device.run(
            300,
            lambda d=device, flood=flood: (
                flood == "prompts" and 2 not in busy(d) and d.forward(2, 1000, program_work=10_000_000)
            ),
        )
        assert max(device.lengths) < 0.02, flood  # a token of such a prompt at a time
        assert device.tokens[1] > 250, flood
        if flood == "rows":
            assert sum(device.gaps[1]) / len(device.gaps[1]) < 4 * device.costs.bare
            assert device.tokens[2] > 10
