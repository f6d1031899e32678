"""Plans in a BatcherCore with a fake runner: exact schedules, and every run gets exactly one end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pieray.messages import (
    GREEDY,
    CancelInferlet,
    Completed,
    CopyTokens,
    ExtendPlan,
    Forward,
    PlanTokens,
    RunEnded,
    Sample,
    StartPlan,
    StopPlan,
)
from pieray.model_settings import ModelSettings
from pieray.sched.core import BatcherCore
from pieray.sched.drafts import NgramDrafter
from tests.support.digest_runner import DigestRunner, reference


def u32(*numbers: int) -> bytes:
    return np.array(numbers, "<u4").tobytes()


def start(
    ticket: int,
    pages: list[int],
    tokens: list[int],
    most: int,
    *,
    kv_len: int = 0,
    inferlet: int = 1,
    queue: int = 1,
    priority: int = 0,
    stop: tuple[int, ...] = (),
    drafts: int = 0,
    history: tuple[int, ...] = (),
) -> StartPlan:
    return StartPlan(
        ticket,
        inferlet,
        queue,
        priority,
        u32(*pages),
        kv_len,
        u32(*tokens),
        most,
        GREEDY,
        u32(*stop),
        [],
        [],
        0,
        drafts,
        u32(*history),
        b"",
        False,
        b"",
    )


def forward(
    ticket: int,
    pages: list[int],
    tokens: list[int],
    *,
    kv_len: int = 0,
    inferlet: int = 1,
    queue: int = 1,
    output: int = 0,
) -> Forward:
    outputs = [Sample(len(tokens) - 1, ticket=output)] if output else []
    return Forward(ticket, inferlet, queue, 0, u32(*pages), kv_len, u32(*tokens), b"", b"", outputs)


class Desk:
    def __init__(self, **settings) -> None:
        self.runner = DigestRunner(4)
        self.core = BatcherCore(self.runner, ModelSettings(page_size=4, **settings))
        self.said: dict[int, list[int]] = {}
        self.ends: dict[int, object] = {}
        self.time = 0.0

    def submit(self, *messages, peer: str = "p") -> None:
        self.note(self.core.submit(peer, messages, self.time))

    def step(self) -> set[int]:
        """Tickets answered in one step."""
        self.time += 0.001
        return self.note(self.core.step(self.time))

    def note(self, answers) -> set[int]:
        tickets = set()
        for _, message in answers:
            if isinstance(message, PlanTokens):
                for row in message.rows():
                    assert row.ticket not in self.ends
                    self.said.setdefault(row.ticket, []).extend(np.frombuffer(row.tokens, "<u4").tolist())
                    tickets.add(row.ticket)
            elif isinstance(message, RunEnded):
                assert message.ticket not in self.ends, "one end each"
                self.ends[message.ticket] = message.error[0] if message.error else [message.reason, message.stopped_by]
                tickets.add(message.ticket)
            else:
                assert message.ticket not in self.ends, "one end each"
                self.ends[message.ticket] = message.value if isinstance(message, Completed) else message.code
                tickets.add(message.ticket)
        return tickets

    def run(self) -> None:
        while self.core.has_work:
            self.step()


def test_plans_and_forwards_share_every_step():
    desk = Desk()
    desk.submit(start(1, [0, 1, 2], [5, 6], 6), start(2, [3, 4, 5], [7], 6, inferlet=2))
    desk.step()
    desk.submit(forward(3, [6], [9], inferlet=3, output=4))
    assert desk.step() == {1, 2, 3, 4}
    assert desk.runner.batches == [2, 3]
    desk.run()
    assert (desk.said[1], desk.said[2]) == (reference([5, 6], 6), reference([7], 6))
    assert desk.ends[1] == desk.ends[2] == ["length", ""]
    assert len(desk.runner.batches) == 6


def test_a_queue_keeps_its_order_and_pages_their_turns():
    desk = Desk()
    desk.submit(
        start(1, [0, 1], [5], 4),
        forward(2, [7], [1]),
        forward(3, [0, 1], [9], kv_len=1, queue=2),
        forward(4, [8], [1], queue=3),
    )
    assert desk.step() == {1, 4}, "2 is behind the plan in its queue, 3 writes to its pages"
    desk.step()
    assert 2 not in desk.ends
    desk.run()
    assert desk.said[1] == reference([5], 4)
    assert list(desk.ends) == [4, 1, 2, 3] or list(desk.ends) == [4, 1, 3, 2]


def test_prefills_leave_room_for_the_decodes_of_plans():
    desk = Desk(max_batch_tokens=8)
    desk.submit(start(1, [0, 1, 2, 3], [5], 12), forward(2, list(range(10, 20)), [1] * 40, inferlet=2, output=3))
    steps = 0
    while 2 not in desk.ends:
        desk.step()
        steps += 1
    assert steps == 6, "seven tokens of the prefill beside each of the plan's"
    assert len(desk.said[1]) == 6


def test_a_plan_without_a_page_stalls_and_nothing_spins():
    desk = Desk()
    desk.submit(start(1, [0], [5, 6], 9), forward(2, [9], [1], output=3), start(4, [5, 6, 7], [5], 9, inferlet=2))
    for _ in range(12):
        desk.step()
    assert desk.said[1] == reference([5, 6], 3)
    assert desk.ends[4] == ["length", ""]
    assert not desk.core.has_work, "it waits, and its queue with it"
    desk.submit(ExtendPlan(1, u32(1, 2)))
    assert desk.core.has_work
    desk.run()
    assert desk.said[1] == reference([5, 6], 9)
    assert {1, 2, 3} <= set(desk.ends)


def test_stop_ends_a_plan_wherever_it_is():
    desk = Desk()
    desk.submit(start(1, [0], [5, 6], 9), start(2, [1, 2, 3], [7] * 5, 9, inferlet=2))
    desk.submit(StopPlan(2))
    for _ in range(6):
        desk.step()
    desk.submit(StopPlan(1))
    assert desk.ends == {1: ["", ""], 2: ["", ""]}
    desk.submit(StopPlan(1), StopPlan(77), ExtendPlan(1, u32(4)))
    assert not desk.core.has_work
    assert desk.core.plans.num_running == 0


def test_a_plan_stopped_while_it_waits_for_a_copy_is_gone():
    desk = Desk()
    desk.submit(forward(1, [0], [5, 6], queue=1))
    desk.submit(CopyTokens(2, 1, 1, 0, [[0, 0, 1, 0, 2]]), start(3, [1], [7], 2, kv_len=2, queue=2))
    desk.submit(StopPlan(3))
    desk.run()
    assert desk.ends == {1: None, 2: None, 3: ["", ""]}


def test_after_a_stop_the_pages_serve_the_next_command():
    desk = Desk()
    desk.submit(start(1, [0, 1, 2], [5, 6], 9))
    desk.step()
    desk.step()
    desk.submit(StopPlan(1), start(2, [0, 1, 2], [*desk.said[1][1:], 50], 3, kv_len=3))
    desk.run()
    assert desk.said[2] == reference([5, 6, *desk.said[1], 50], 3)


@pytest.mark.parametrize("by_peer", [False, True])
def test_who_is_gone_leaves_nothing(by_peer: bool):
    desk = Desk()
    desk.submit(start(1, [0], [5, 6], 9), forward(2, [0], [7], queue=2))
    desk.step()
    if by_peer:
        desk.core.drop_peer("p")
    else:
        desk.submit(CancelInferlet(9, 1))
        assert desk.ends == {9: None}
    assert not desk.core.has_work
    assert desk.core.plans.num_running == 0
    assert desk.core.stats()["queued"] == 0


def test_what_a_failed_plan_was_to_write_cannot_be_read():
    desk = Desk()
    desk.submit(start(1, [0, 1], [5, 6], 6))
    desk.step()
    desk.runner.fail_at = 2
    desk.submit(forward(3, [0, 1], [7], kv_len=3, queue=2), forward(2, [0, 1], [7], kv_len=2, queue=2))
    desk.run()
    assert desk.ends[1] == "internal"
    assert (desk.ends[2], desk.ends[3]) == (None, "cancelled")


def test_a_malformed_plan_fails_alone():
    desk = Desk()
    good = start(5, [8], [5], 3, inferlet=2)
    bad = [start(1, [0], [], 3), start(2, [0], [1] * 5, 3), start(3, [0], [1], 0), start(4, [0], [1], 3, drafts=99)]
    desk.submit(*bad, good)
    desk.run()
    assert desk.ends == {1: "invalid", 2: "invalid", 3: "invalid", 4: "invalid", 5: ["length", ""]}


@pytest.mark.parametrize("budget", [3, 5, 64])
def test_drafts_are_cut_where_the_step_ends(budget: int):
    desk = Desk(max_batch_tokens=budget)
    expected = reference([5, 6], 40)
    for ticket in (1, 2):
        pages = list(range(16 * ticket, 16 * ticket + 12))
        desk.submit(start(ticket, pages, [5, 6], 40, inferlet=ticket, drafts=6, history=tuple(expected)))
    desk.run()
    assert desk.said == {1: expected, 2: expected}


def test_a_stop_token_among_accepted_drafts_ends_it_there():
    expected = reference([5, 6], 40)
    desk = Desk()
    stop = expected[11]
    where = expected.index(stop)
    desk.submit(start(1, list(range(12)), [5, 6], 40, drafts=8, history=(5, 6, *expected), stop=(stop,)))
    desk.run()
    assert desk.said[1] == expected[: where + 1]
    assert desk.ends[1] == ["stop", stop]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6))
def test_a_draft_is_what_followed_the_latest_repetition(line: list[int], most: int):
    expected: list[int] = []
    for length in (4, 3, 2):
        places = [p for p in range(len(line) - length) if line[p : p + length] == line[-length:]]
        if len(line) > length and places:
            expected = line[places[-1] + length :][:most]
            break
    drafter = NgramDrafter(line[:5])
    drafter.extend(line[5:])
    assert drafter.draft(most) == expected


def test_drafts_are_found_on_borders_of_tokens_only():
    assert NgramDrafter([0x01000000, 0x02000000, 0x03, 0x0100, 0x020000, 0x01, 0x02]).draft(3) == []
