"""Scheduler: exactly what runs in which step."""

import random

import numpy as np
import pytest
from rounds import seeds

from pieray.messages import CopyTokens, Forward
from pieray.sched.commands import Command, CopyCommand, ForwardCommand
from pieray.sched.scheduler import Scheduler
from pieray.sched.step_plan import StepPlan

PAGE = 4


def u32(*numbers: int) -> bytes:
    return np.array(numbers, "<u4").tobytes()


class Desk:
    """A scheduler whose commands are known by ticket."""

    def __init__(self, tokens: int = 64, requests: int = 8) -> None:
        self.scheduler = Scheduler(PAGE, tokens, requests, max_wait_s=1.0)
        self.by_ticket: dict[int, Command] = {}

    def forward(self, ticket, pages, kv_len=0, n=1, *, inferlet=1, queue=1, priority=0, now=0.0, peer="p") -> bool:
        message = Forward(ticket, inferlet, queue, priority, u32(*pages), kv_len, u32(*range(n)), b"", b"", [])
        return self._submit(ForwardCommand(peer, message, PAGE), now)

    def copy(self, ticket, *copies, inferlet=1, queue=1, priority=0, now=0.0) -> bool:
        message = CopyTokens(ticket, inferlet, queue, priority, [list(copy) for copy in copies])
        return self._submit(CopyCommand("p", message, PAGE), now)

    def _submit(self, command: Command, now: float) -> bool:
        self.by_ticket[command.ticket] = command
        return self.scheduler.submit(command, now)

    def plan(self, now: float = 0.0) -> StepPlan:
        """The next step, run to its end."""
        plan = self.scheduler.next_step(now)
        for command in [*plan.copies, *(chunk.command for chunk in plan.forwards if chunk.is_last)]:
            self.scheduler.finish(command)
        return plan

    def step(self, now: float = 0.0) -> list:
        """Tickets of copies and (ticket, start, tokens) of forwards of the next step."""
        plan = self.plan(now)
        return [c.ticket for c in plan.copies] + [(c.ticket, start, n) for c, start, n, *_ in plan.forwards]


# --- order and hazards -----------------------------------------------------------------------------


def test_queue_runs_in_order_and_what_depends_waits_a_step():
    desk = Desk()
    desk.forward(1, [10], 0, 2)
    desk.forward(2, [10], 2)
    desk.forward(3, [10], 3)
    assert [desk.step() for _ in range(4)] == [[(1, 0, 2)], [(2, 0, 1)], [(3, 0, 1)], []]
    assert desk.scheduler.num_queued == 0
    assert not desk.scheduler.is_busy(("p", 1))


def test_beam_on_one_queue_shares_a_step():
    desk = Desk()
    for ticket in range(1, 5):
        desk.forward(ticket, [0, 10 + ticket], 4)  # all read page 0
    assert desk.step() == [(1, 0, 1), (2, 0, 1), (3, 0, 1), (4, 0, 1)]


def test_command_behind_a_blocked_one_of_its_queue_does_not_overtake():
    desk = Desk()
    desk.forward(1, [10], 0)
    desk.forward(2, [10], 1)
    desk.forward(3, [11], 0)
    assert desk.step() == [(1, 0, 1)]
    assert desk.step() == [(2, 0, 1), (3, 0, 1)]


def test_queues_are_independent_unless_they_conflict():
    desk = Desk()
    desk.forward(1, [10], 0, queue=1)
    desk.forward(2, [10, 11], 4, queue=2)  # reads what 1 writes
    desk.forward(3, [12], 0, queue=3)
    assert desk.step() == [(1, 0, 1), (3, 0, 1)]
    assert desk.step() == [(2, 0, 1)]


def test_writer_waits_for_earlier_readers_of_other_queues():
    desk = Desk()
    desk.forward(1, [10, 11], 4, queue=1)  # reads 10
    desk.forward(2, [10], 2, queue=2)  # writes 10
    desk.forward(3, [10, 12], 4, queue=3)  # reads 10, after that
    assert [desk.step() for _ in range(3)] == [[(1, 0, 1)], [(2, 0, 1)], [(3, 0, 1)]]


def test_inferlets_never_wait_for_each_other():
    desk = Desk()
    for inferlet in (1, 2, 3):
        desk.forward(inferlet, [10], 0, inferlet=inferlet)
    desk.forward(4, [10], 0, peer="q")
    assert desk.step() == [(1, 0, 1), (2, 0, 1), (3, 0, 1), (4, 0, 1)]


def test_copy_and_the_forward_that_needs_it_share_a_step():
    desk = Desk()
    desk.copy(1, (10, 0, 11, 0, 2))
    desk.forward(2, [11], 2)
    desk.copy(3, (11, 0, 12, 0, 2))  # must not run before 2
    desk.forward(4, [12], 2)
    assert desk.step() == [1, (2, 0, 1)]
    assert desk.step() == [3, (4, 0, 1)]


def test_copies_that_build_on_each_other_run_in_one_step_in_order():
    desk = Desk()
    desk.copy(1, (10, 0, 11, 0, 2), queue=1)
    desk.copy(2, (11, 0, 12, 0, 2), queue=2)
    desk.copy(3, (12, 0, 13, 0, 2), queue=1)
    desk.forward(4, [13], 2, queue=3)
    assert desk.step() == [1, 2, 3, (4, 0, 1)]


# --- budgets and policy ----------------------------------------------------------------------------


def test_decodes_come_first_and_prefills_share_the_rest_in_chunks():
    desk = Desk(tokens=32)
    desk.forward(1, range(20), 0, 70, inferlet=1)
    desk.forward(2, range(20), 0, 20, inferlet=2)
    desk.forward(3, range(20), 7, 1, inferlet=3)
    desk.forward(4, range(20), 7, 3, inferlet=4)
    assert desk.step() == [(3, 0, 1), (4, 0, 3), (1, 0, 28)]
    assert desk.step() == [(1, 28, 32)]
    assert desk.step() == [(1, 60, 10), (2, 0, 20)]
    assert desk.step() == []


def test_successor_of_a_prefill_joins_when_its_last_chunk_is_in_the_step():
    desk = Desk(tokens=20)
    desk.forward(1, range(10), 0, 30)
    desk.forward(2, [50], 0, 1)
    assert desk.step() == [(1, 0, 20)]
    assert desk.step() == [(1, 20, 10), (2, 0, 1)]


def test_request_budget():
    desk = Desk(requests=2)
    for inferlet in range(5):
        desk.forward(inferlet, [inferlet], inferlet=inferlet)
    assert [desk.step() for _ in range(3)] == [[(0, 0, 1), (1, 0, 1)], [(2, 0, 1), (3, 0, 1)], [(4, 0, 1)]]


def test_higher_priority_first_then_first_come():
    desk = Desk(requests=2)
    for ticket, priority in enumerate((0, -5, 7, 0, 7)):
        desk.forward(ticket, [ticket], inferlet=ticket, priority=priority)
    assert [desk.step() for _ in range(3)] == [[(2, 0, 1), (4, 0, 1)], [(0, 0, 1), (3, 0, 1)], [(1, 0, 1)]]


def test_nothing_starves():
    """A low-priority prefill against a stream of urgent decodes that fills every step by itself."""
    desk = Desk(tokens=4, requests=4)
    desk.forward(0, range(5), 0, 17, inferlet=1000, priority=-100, now=0.0)
    ran, ticket = [], 1
    for tenth in range(20):
        for _ in range(4):
            desk.forward(ticket, [ticket], inferlet=ticket, priority=100, now=tenth / 10)
            ticket += 1
        ran.append([t for t, _, _ in desk.step(now=tenth / 10)])
    first = next(i for i, tickets in enumerate(ran) if 0 in tickets)
    assert first == 10  # at 1.0 s = max_wait_s
    assert [i for i, tickets in enumerate(ran) if 0 in tickets] == [10, 11, 12, 13, 14]  # 4 tokens a step, 17 in all


# --- failure and cancellation --------------------------------------------------------------------


def test_failure_takes_those_that_read_its_slots_and_no_others():
    desk = Desk()
    desk.forward(1, [10], 0, 2)
    desk.forward(2, [10], 2)  # reads slots 0 and 1 of page 10
    desk.forward(3, [11], 0)
    desk.forward(4, [10, 12], 4)  # reads what 2 was to write
    desk.forward(5, [10], 0, 3)  # overwrites all of it
    desk.forward(6, [10], 3)
    plan = desk.scheduler.next_step(0.0)
    assert [chunk.command.ticket for chunk in plan.forwards] == [1]
    assert [c.ticket for c in desk.scheduler.fail(desk.by_ticket[1])] == [2, 4]
    assert desk.by_ticket[2].is_over
    assert [desk.step() for _ in range(3)] == [[(3, 0, 1), (5, 0, 3)], [(6, 0, 1)], []]


def test_commands_that_come_after_a_failure_are_refused_until_the_slots_are_written():
    desk = Desk()
    desk.forward(1, [10], 0, 3)
    desk.scheduler.next_step(0.0)
    desk.scheduler.fail(desk.by_ticket[1])
    assert not desk.forward(2, [10], 3)
    assert not desk.copy(3, (10, 2, 11, 0, 1))
    assert not desk.forward(4, [11], 1)  # what 3 was to write
    assert desk.forward(5, [10], 3, inferlet=2)
    assert desk.forward(6, [10], 0, 3)
    assert desk.forward(8, [10], 3)
    assert desk.step() == [(5, 0, 1), (6, 0, 3)]
    assert desk.step() == [(8, 0, 1)]


def test_failed_chunk_ends_its_command():
    desk = Desk(tokens=20)
    desk.forward(1, range(10), 0, 30)
    desk.forward(2, [50])
    desk.plan()
    assert desk.scheduler.fail(desk.by_ticket[1]) == []
    assert desk.step() == [(2, 0, 1)]
    assert (desk.scheduler.num_queued, desk.scheduler.is_full) == (0, False)


def test_cancel_drops_what_is_queued_and_marks_what_runs():
    desk = Desk()
    desk.forward(1, [10])
    desk.forward(2, [10], 1)
    desk.forward(3, [11], inferlet=2)
    running = desk.scheduler.next_step(0.0)
    assert [c.ticket for c in desk.scheduler.cancel("p", 1)] == [1, 2]
    assert [chunk.command.is_over for chunk in running.forwards] == [True, False]
    for chunk in running.forwards:
        desk.scheduler.finish(chunk.command)
    assert desk.step() == []
    desk.forward(4, [10])
    desk.forward(5, [10], peer="q")
    assert [c.ticket for c in desk.scheduler.cancel("p")] == [4]
    assert desk.step() == [(5, 0, 1)]


# --- all of it at random ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(40))
def test_any_schedule_reads_what_program_order_would_have_read(seed):
    """Random commands of two inferlets on three queues; each must see the last writers that program order gives."""
    rng = random.Random(seed)
    desk = Desk(tokens=rng.choice([5, 20, 64]), requests=rng.choice([1, 3, 8]))
    expected: dict[tuple, int] = {}  # (inferlet, page): the last to write it, in program order
    inputs: dict[int, dict] = {}
    for ticket in range(60):
        inferlet, queue = rng.randint(1, 2), rng.randint(1, 3)
        base = 100 * inferlet
        if rng.random() < 0.25:
            src, dst = base + rng.randrange(6), base + rng.randrange(6)
            desk.copy(ticket, (src, 0, dst, 1, 2), inferlet=inferlet, queue=queue)
        else:
            pages = rng.sample(range(base, base + 6), rng.randint(1, 4))
            kv_len = rng.randrange(len(pages) * PAGE)
            n = rng.randint(1, len(pages) * PAGE - kv_len)
            desk.forward(ticket, pages, kv_len, n, inferlet=inferlet, queue=queue, priority=rng.randint(-2, 2))
        command = desk.by_ticket[ticket]
        inputs[ticket] = {page: expected.get(page) for page in command.used_pages()}
        expected |= dict.fromkeys(command.written_pages(), ticket)
    actual: dict[int, int] = {}
    order: list[int] = []
    while desk.scheduler.num_queued:
        plan = desk.scheduler.next_step(0.0)
        assert plan.copies or plan.forwards
        assert (
            plan.num_tokens
            == sum(chunk.num_tokens for chunk in plan.forwards)
            <= desk.scheduler.limits.max_batch_tokens
        )
        assert len(plan.forwards) <= desk.scheduler.limits.max_batch_requests
        for copy in plan.copies:
            assert {page: actual.get(page) for page in copy.used_pages()} == inputs[copy.ticket]
            actual |= dict.fromkeys(copy.written_pages(), copy.ticket)
        written: list[int] = []
        for command, start, n, *_ in plan.forwards:
            mine = set(command.written_pages()) if start else set()
            seen = {
                page: inputs[command.ticket][page] if page in mine else actual.get(page)
                for page in command.used_pages()
            }
            assert seen == inputs[command.ticket]
            assert start + n == command.num_done
            written += command.written_pages()
        assert len(written) == len(set(written))  # no two of a step write one page
        for command, *_ in plan.forwards:
            actual |= dict.fromkeys(command.written_pages(), command.ticket)
        done = [*plan.copies, *(chunk.command for chunk in plan.forwards if chunk.is_last)]
        order += [c.ticket for c in done]
        for command in done:
            desk.scheduler.finish(command)
    assert sorted(order) == list(range(60))
    assert actual == expected
