"""BatcherCore with a fake runner: every ticket gets exactly one answer, and one bad command fails alone."""

import re
from collections import Counter

import numpy as np
import pytest

from pieray.errors import DeviceLost, InvalidRequest, ModelError
from pieray.messages import (
    CancelInferlet,
    Completed,
    CopyTokens,
    Distribution,
    EmbedTokens,
    Failed,
    Forward,
    Hello,
    Logits,
    Logprobs,
    Message,
    Sample,
    Sampler,
)
from pieray.model_settings import ModelSettings
from pieray.sched.core import BatcherCore
from pieray.sched.costs import CostModel
from tests.support.rows import RowsAsItems


def u32(*numbers: int) -> bytes:
    return np.array(numbers, "<u4").tobytes()


class PanicError(BaseException):
    """What a panic of native code looks like: no Exception."""


class FakeRunner(RowsAsItems):
    """Samples token 100 + row; records what it is asked.

    Token 666 is invalid, 667 crashes, 668 finds the device dead, 669 panics.
    """

    def __init__(self) -> None:
        self.calls: list[list[tuple]] = []
        self.wanted: list[list] = []
        self.begins: list[tuple[int, int]] = []
        self.copies: list[list[tuple]] = []
        self.during = lambda: None

    def step(self, items, outputs):
        self.calls.append(
            [(i.pages.tolist(), i.kv_len, i.tokens.tolist(), i.positions.tolist(), i.mask) for i in items]
        )
        self.wanted += [list(wanted) for wanted in outputs]
        self.begins += [(item.start, item.kv_len) for item in items]
        self.during()
        tokens = [token for item in items for token in item.tokens.tolist()]
        if 667 in tokens:
            raise RuntimeError("out of luck")
        if 668 in tokens:
            raise DeviceLost("cuda:0 is dead: an illegal memory access was encountered")
        if 669 in tokens:
            raise PanicError("a panic of native code")
        return [self._answer(item, wanted) for item, wanted in zip(items, outputs, strict=True)]

    def _answer(self, item, wanted):
        if 666 in item.tokens.tolist():
            return InvalidRequest("token 666 is outside the vocabulary of 666")
        if 665 in item.tokens.tolist():
            return ModelError("the logits of this item are not finite")
        values = {
            Sample: lambda r: 100 + r.row - item.start,
            Distribution: lambda r: (np.arange(r.k, dtype=np.uint32), np.full(r.k, 0.5, np.float32)),
            Logprobs: lambda r: -np.frombuffer(r.token_ids, "<u4").astype(np.float32),
            Logits: lambda _: np.zeros(3, np.float32),
        }
        return [values[type(request)](request) for request in wanted]

    def copy_tokens(self, ranges):
        if any(copy[0] == 99 for copy in ranges):
            raise InvalidRequest("copy_tokens: page 99 is outside a pool of 64 pages")
        self.copies.append(list(ranges))


class Desk:
    def __init__(self, costs: CostModel | None = None, **settings) -> None:
        self.runner = FakeRunner()
        self.time = 0.0
        self.core = BatcherCore(self.runner, ModelSettings(page_size=4, **settings), self._clock, costs=costs)

    def _clock(self) -> float:
        self.time += 0.005  # each step takes 5 ms
        return self.time

    def submit(self, *messages: Message, peer: str = "p") -> list[tuple]:
        return plain(self.core.submit(peer, messages, self.time))

    def step(self) -> list[tuple]:
        return plain(self.core.step(self.time))

    def run(self) -> list[tuple]:
        answers = []
        while self.core.has_work:
            answers += self.step()
        return answers


def plain(answers) -> list[tuple]:
    """(peer, ticket, value) of results, (peer, ticket, code, message) of failures."""
    return [
        (peer, m.ticket, m.value) if isinstance(m, Completed) else (peer, m.ticket, m.code, m.message)
        for peer, m in answers
    ]


def forward(ticket, pages, kv_len=0, tokens=(1,), *, inferlet=1, queue=1, positions=(), mask=b"", outputs=()):
    return Forward(ticket, inferlet, queue, 0, u32(*pages), kv_len, u32(*tokens), u32(*positions), mask, list(outputs))


# --- results -------------------------------------------------------------------------------------


def test_every_kind_of_output_as_messages_document_it():
    desk = Desk()
    outputs = [
        Sample(1, Sampler(0.5, 3, 0.9, 0.1, seed=2**63 + 5), 2),
        Distribution(0, 2, 3),
        Logprobs(1, u32(7, 8), 4),
        Logits(0, 5),
    ]
    assert desk.submit(forward(1, [10, 11], 3, (5, 6), outputs=outputs)) == []
    assert desk.run() == [
        ("p", 2, u32(101)),
        ("p", 3, [u32(0, 1), np.array([0.5, 0.5], "<f4").tobytes()]),
        ("p", 4, np.array([-7, -8], "<f4").tobytes()),
        ("p", 5, np.zeros(3, "<f4").tobytes()),
        ("p", 1, None),
    ]
    assert desk.runner.calls == [[([10, 11], 3, [5, 6], [3, 4], None)]]
    assert desk.runner.wanted[0] == outputs


def test_prefill_in_chunks_gives_the_same_rows_counters_positions_and_mask():
    desk = Desk(max_batch_tokens=3)
    bits = np.tril(np.ones((5, 7), np.uint8), 2)
    bits[4, 0] = 0
    mask = np.packbits(bits, bitorder="little").tobytes()
    outputs = [Sample(4, ticket=2), Sample(1, ticket=3)]
    desk.submit(forward(1, [8, 9], 2, range(5), positions=(9, 8, 7, 6, 5), mask=mask, outputs=outputs))
    assert desk.step() == [("p", 3, u32(101))]
    assert desk.step() == [("p", 2, u32(101)), ("p", 1, None)]
    first = np.packbits(bits[:3, :5], bitorder="little").tobytes()
    second = np.packbits(bits[3:, :7], bitorder="little").tobytes()
    assert desk.runner.calls == [[([8, 9], 2, [0, 1, 2], [9, 8, 7], first)], [([8, 9], 5, [3, 4], [6, 5], second)]]
    assert desk.runner.wanted == [[Sample(1, ticket=3)], [Sample(4, ticket=2)]]
    assert [start for start, _ in desk.runner.begins] == [0, 3]
    assert [kv_len for _, kv_len in desk.runner.begins] == [2, 5], "draws count from there"


def test_copies_go_first_and_independent_ones_in_one_call():
    desk = Desk()
    desk.submit(
        CopyTokens(1, 1, 1, 0, [[10, 0, 11, 0, 2]]),
        CopyTokens(2, 2, 1, 0, [[20, 0, 21, 0, 2]]),
        CopyTokens(3, 1, 2, 0, [[11, 0, 12, 0, 2]]),
        forward(4, [12], 2),
    )
    assert desk.step() == [("p", 1, None), ("p", 2, None), ("p", 3, None), ("p", 4, None)]
    assert desk.runner.copies == [[(10, 0, 11, 0, 2), (20, 0, 21, 0, 2)], [(11, 0, 12, 0, 2)]]


def test_step_without_work_does_nothing():
    desk = Desk()
    assert (desk.core.has_work, desk.step(), desk.core.stats()["steps"]) == (False, [], 0)


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (forward(1, [10], 4), r"kv_len 4 \+ 1 tokens.* 1 pages of 4"),
        (forward(1, [10], 0, ()), r"kv_len 0 \+ 0 tokens"),
        (forward(1, [10], 0, (1, 2), positions=(1,)), "one per token .2.; given 1"),
        (forward(1, [10], 0, (1, 2), mask=b"123456"), "2 x 2 bits takes 1 bytes; given 6"),
        (forward(1, [10], outputs=[Logits(1, 2)]), r"row 1 of a pass of 1"),
        (forward(1, [10], outputs=[Sample(-1, ticket=2)]), r"row -1 of a pass of 1"),
        (CopyTokens(1, 1, 1, 0, [[1, 3, 2, 0, 2]]), "in pages of 4"),
        (CopyTokens(1, 1, 1, 0, [["a"]]), "page, offset|malformed"),
        (Forward(1, 1, 1, 0, b"abc", 0, "text", b"", b"", 7), "malformed|kv_len"),  # type: ignore[arg-type]
    ],
)
def test_bad_command_is_answered_at_once_on_all_its_tickets(message, text):
    desk = Desk()
    answers = desk.submit(message)
    assert {answer[2] for answer in answers} == {"invalid"}
    num_tickets = 2 if getattr(message, "outputs", 7) not in ([], 7) else 1
    assert [answer[1] for answer in answers] == [1, 2][:num_tickets]
    assert re.search(text, answers[0][3])
    assert not desk.core.has_work


def test_unknown_message_is_answered():
    desk = Desk()
    assert desk.submit(Hello("client", "x")) == []
    assert [a[2] for a in desk.submit(Failed(3, "x", "y"))] == ["internal"]


@pytest.mark.parametrize(("token", "code"), [(666, "invalid"), (665, "internal"), (667, "internal")])
def test_one_bad_command_fails_alone_with_what_builds_on_it(token, code):
    desk = Desk()
    desk.submit(
        forward(1, [10], 0, (token,), outputs=[Sample(0, ticket=2)]),
        forward(3, [10], 1, outputs=[Sample(0, ticket=4)]),
        forward(5, [11], 0, inferlet=2, outputs=[Sample(0, ticket=6)]),
    )
    answers = desk.run()
    assert {(a[1], a[2]) for a in answers} == {
        (1, code),
        (2, code),
        (3, "cancelled"),
        (4, "cancelled"),
        (5, None),
        (6, u32(100)),
    }
    assert max(Counter(a[1] for a in answers).values()) == 1
    assert [a[2] for a in desk.submit(forward(7, [10], 1))] == ["cancelled"]
    desk.submit(forward(8, [10], 0), forward(9, [10], 1))
    assert desk.run() == [("p", 8, None), ("p", 9, None)]


def test_a_dead_device_fails_everything_once():
    desk = Desk(max_batch_requests=2)
    desk.submit(forward(1, [10], 0, (668,), outputs=[Sample(0, ticket=2)]))
    desk.submit(forward(3, [11], inferlet=2))
    desk.submit(forward(4, [12], inferlet=3), peer="q")
    desk.runner.during = lambda: desk.submit(EmbedTokens(5, 3, u32(1)), peer="q")
    assert desk.core.lost is None
    answers = desk.run()
    assert sorted((a[0], a[1], a[2]) for a in answers) == [
        ("p", 1, "device-lost"),
        ("p", 2, "device-lost"),
        ("p", 3, "device-lost"),
        ("q", 4, "device-lost"),
        ("q", 5, "device-lost"),
    ]
    assert "cuda:0 is dead" in answers[0][3]
    assert isinstance(desk.core.lost, DeviceLost)
    assert not desk.core.has_work


def test_a_dead_device_met_by_a_copy_or_an_embedding_is_dead():
    for message in (CopyTokens(1, 1, 1, 0, [[1, 0, 2, 0, 4]]), EmbedTokens(1, 1, u32(1))):
        desk = Desk()
        desk.runner.copy_tokens = desk.runner.embed = lambda _: (_ for _ in ()).throw(DeviceLost("cuda:0 is dead"))
        desk.submit(message)
        assert [(a[1], a[2]) for a in desk.run()] == [(1, "device-lost")]
        assert desk.core.lost is not None


def test_a_panic_of_native_code_fails_its_command_alone():
    desk = Desk()
    desk.submit(forward(1, [10], 0, (669,)), forward(2, [11], inferlet=2))
    assert {(a[1], a[2]) for a in desk.run()} == {(1, "internal"), (2, None)}
    assert desk.core.lost is None


def test_failed_copy_takes_its_forward_along_and_no_other():
    desk = Desk()
    desk.submit(
        CopyTokens(1, 1, 1, 0, [[99, 0, 11, 0, 2]]),
        forward(2, [11], 2),
        CopyTokens(3, 2, 1, 0, [[20, 0, 21, 0, 2]]),
        forward(4, [21], 2, inferlet=2),
    )
    assert {(a[1], a[2]) for a in desk.run()} == {(1, "invalid"), (2, "cancelled"), (3, None), (4, None)}
    assert desk.runner.calls == [[([21], 2, [1], [2], None)]]


def many_copies(first: int = 10_000, count: int = 4000) -> list[list[int]]:
    return [[first + i, 0, first + count + i, 0, 3] for i in range(count)]


def test_a_large_copy_is_cut_over_steps_which_run_others_too_and_is_answered_once():
    desk = Desk(CostModel())
    desk.submit(CopyTokens(1, 1, 1, 0, many_copies()), forward(2, [14_000], 3, inferlet=1))  # reads what 1 writes
    found, ends = [], 0
    while desk.core.has_work:
        desk.submit(forward(10 + ends, [10], ends % 4, inferlet=2))
        found += (answers := desk.step())
        ends += 1
        assert ("p", 9 + ends, None) in answers, "the other's pass is in every step"
    assert ends > 3
    assert [answer for answer in found if answer[1] < 10] == [("p", 1, None), ("p", 2, None)]
    assert [list(copy) for copies in desk.runner.copies for copy in copies] == many_copies()


def test_copies_that_build_on_each_other_are_not_cut():
    desk = Desk(CostModel())
    chained = [[1000 + i, 0, 1001 + i, 0, 3] for i in range(4000)]
    desk.submit(CopyTokens(1, 1, 1, 0, chained))
    assert desk.step() == [("p", 1, None)]
    assert [list(copy) for copy in desk.runner.copies[0]] == chained


def test_a_copy_that_fails_in_a_later_part_fails_once_with_what_reads_it():
    desk = Desk(CostModel())
    desk.submit(CopyTokens(1, 1, 1, 0, [*many_copies(), [99, 0, 9000, 0, 3]]), forward(2, [9000], 3, inferlet=1))
    found = desk.run()
    assert [(ticket, code) for _, ticket, code, _ in found] == [(1, "invalid"), (2, "cancelled")]


def test_a_copy_whose_inferlet_ends_in_its_middle_is_gone():
    desk = Desk(CostModel())
    desk.submit(CopyTokens(1, 1, 1, 0, many_copies()))
    assert desk.step() == []
    assert desk.submit(CancelInferlet(5, 1)) == [("p", 5, None)]
    assert not desk.core.has_work
    assert desk.submit(forward(6, [14_000], inferlet=2)) == []
    assert desk.run() == [("p", 6, None)]


def test_chunk_that_fails_answers_each_ticket_once():
    desk = Desk(max_batch_tokens=2)
    desk.submit(forward(1, [8], 0, (1, 2, 666), outputs=[Sample(0, ticket=2), Sample(2, ticket=3)]))
    assert [(a[1], a[2]) for a in desk.run()] == [(2, u32(100)), (1, "invalid"), (3, "invalid")]


# --- cancel and fence ----------------------------------------------------------------------------


def test_cancel_drops_what_is_queued_and_is_answered_at_once():
    desk = Desk()
    desk.submit(forward(1, [10]), forward(2, [11], inferlet=2))
    assert desk.submit(CancelInferlet(9, 1)) == [("p", 9, None)]
    assert desk.run() == [("p", 2, None)]


def test_a_dead_peer_leaves_nothing_queued():
    desk = Desk()
    desk.submit(forward(1, [10]), forward(2, [10], 1))
    desk.submit(forward(3, [10]), peer="q")
    desk.core.drop_peer("p")
    desk.core.drop_peer("never seen")
    assert desk.run() == [("q", 3, None)]
    assert len(desk.runner.calls) == 1


# --- waiting for the cohort ------------------------------------------------------------------------


def test_step_waits_for_those_just_answered_and_not_for_those_that_ended():
    desk = Desk(cohort_wait_s=0.004)
    desk.submit(*(forward(i, [i], inferlet=i) for i in (1, 2, 3)))
    desk.run()
    desk.submit(forward(4, [1], 1, inferlet=1))
    assert desk.core.wait_s(desk.time) == pytest.approx(0.0025)  # half of a step of 5 ms
    desk.submit(forward(5, [2], 1, inferlet=2))
    assert desk.core.wait_s(desk.time + 0.001) == pytest.approx(0.0015)
    desk.submit(CancelInferlet(6, 3))
    assert desk.core.wait_s(desk.time + 0.001) == 0.0


def test_full_batch_waits_for_nobody():
    desk = Desk(max_batch_tokens=4)
    desk.submit(forward(1, [1], inferlet=1), forward(2, [2], inferlet=2))
    desk.run()
    desk.submit(forward(3, [3, 4], 0, (1,) * 5, inferlet=1))
    assert desk.core.wait_s(desk.time) == 0.0


def test_stats_count():
    desk = Desk()
    desk.submit(forward(1, [1], inferlet=1), forward(2, [2], 0, (1, 2), inferlet=2))
    desk.run()
    stats = desk.core.stats()
    assert stats == {
        "steps": 1,
        "forwards": 2,
        "copies": 0,
        "tokens": 3,
        "failed": 0,
        "queued": 0,
        "busy_s": pytest.approx(0.005),
        "mean_batch": 2.0,
        "swap": {"slots": 0, "used": 0, "swapped_out": 0, "swapped_in": 0, "dropped": 0},
    }
