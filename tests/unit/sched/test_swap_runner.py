"""Swapped pages under a real model: what goes on behind a swap is, bit for bit, what it is without one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pieray.assets import model_folder
from pieray.messages import CancelInferlet, Completed, Forward, Logits, Message, SwapIn, SwapOut
from pieray.model_settings import ModelSettings
from pieray.models.runner import ModelRunner
from pieray.sched.core import BatcherCore

PROMPT = [int(token) for token in np.random.default_rng(5).integers(0, 200, 45)]
FOREIGN = [int(token) for token in np.random.default_rng(6).integers(0, 200, 64)]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def runner(request: pytest.FixtureRequest) -> ModelRunner:
    return ModelRunner.load(model_folder("pie-tiny"), dtype=request.param, num_pages=32, swap_bytes=1 << 20)


def u32(numbers: Sequence[int]) -> bytes:
    return np.array(numbers, "<u4").tobytes()


class Desk:
    """A core that swaps three pages a step at most."""

    def __init__(self, runner: ModelRunner, num_slots: int | None = None) -> None:
        num_slots = runner.host_pool.num_slots if num_slots is None else num_slots
        self.core = BatcherCore(runner, ModelSettings(), num_swap_slots=num_slots, max_swap_pages=3)
        self.answers: dict[int, bytes] = {}

    def submit(self, *messages: Message, peer: str = "p") -> None:
        self._note(self.core.submit(peer, messages, 0.0))

    def run(self) -> None:
        while self.core.has_work:
            self._note(self.core.step(0.0))
            self.core.sent()

    def _note(self, answers: list[tuple[str, Message]]) -> None:
        for _, message in answers:
            assert isinstance(message, Completed), message
            self.answers[message.ticket] = message.value


class Text:
    """A sequence that goes on greedily, a pass of one token after another, on pages that may change."""

    def __init__(self, desk: Desk, inferlet: int, pages: list[int]) -> None:
        self.desk, self.inferlet, self.pages = desk, inferlet, pages
        self.kv_len = 0
        self.next = PROMPT
        self.logits: list[np.ndarray] = []
        self.tickets = iter(range(inferlet * 1000, inferlet * 1000 + 1000))

    def ask(self) -> int:
        ticket = next(self.tickets)
        self.desk.submit(
            Forward(
                ticket,
                self.inferlet,
                1,
                0,
                u32(self.pages),
                self.kv_len,
                u32(self.next),
                b"",
                b"",
                [Logits(len(self.next) - 1, next(self.tickets))],
            )
        )
        return ticket

    def take(self, ticket: int) -> None:
        self.kv_len += len(self.next)
        self.logits.append(np.frombuffer(self.desk.answers[ticket + 1], "<f4"))
        self.next = [int(self.logits[-1].argmax())]

    def go(self, count: int) -> None:
        for _ in range(count):
            ticket = self.ask()
            self.desk.run()
            self.take(ticket)


def scribble(desk: Desk, pages: list[int]) -> None:
    """Another inferlet's text on these pages."""
    text = FOREIGN[: 16 * len(pages)]
    desk.submit(Forward(90_000, 9, 1, 0, u32(pages), 0, u32(text), b"", b"", []), peer="q")
    desk.run()


@pytest.fixture
def expected(runner: ModelRunner) -> list[np.ndarray]:
    text = Text(Desk(runner), 1, [20, 21, 22, 23])
    text.go(12)
    return text.logits


def test_a_text_goes_on_behind_a_swap_as_without_one(runner: ModelRunner, expected: list[np.ndarray]) -> None:
    desk = Desk(runner)
    text = Text(desk, 1, [0, 1, 2, 3])
    text.go(4)
    ticket = text.ask()
    desk.submit(SwapOut(5, 1, 2, 0, u32([0, 1, 2, 3])))  # behind the pass, which has not run
    desk.run()
    text.take(ticket)
    slots = np.frombuffer(desk.answers[5], "<u4").tolist()
    assert slots == [0, 1, 2, 3]
    scribble(desk, [0, 1, 2, 3])
    text.pages = [9, 0, 12, 8]
    desk.submit(SwapIn(6, 1, 3, 0, u32([2, 0, 3, 1]), u32([12, 9, 8, 0])))
    text.go(7)  # the first of it is sent before the swap has run
    assert len(text.logits) == len(expected)
    for ours, theirs in zip(text.logits, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert desk.core.stats()["swap"]["used"] == 0


def test_a_part_of_a_text_is_swapped_when_the_pool_is_full(runner: ModelRunner, expected: list[np.ndarray]) -> None:
    desk = Desk(runner, num_slots=2)
    text = Text(desk, 1, [0, 1, 2, 3])
    text.go(5)
    desk.submit(SwapOut(5, 1, 2, 0, u32([0, 1, 2, 3])))
    desk.run()
    assert np.frombuffer(desk.answers[5], "<u4").tolist() == [0, 1]
    scribble(desk, [0, 1])
    text.pages = [14, 15, 2, 3]
    desk.submit(SwapIn(6, 1, 3, 0, u32([0, 1]), u32([14, 15])))
    text.go(7)
    for ours, theirs in zip(text.logits, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_slots_of_one_that_ended_hold_another_and_neighbours_keep_theirs(
    runner: ModelRunner, expected: list[np.ndarray]
) -> None:
    desk = Desk(runner)
    ended, text = Text(desk, 2, [4, 5, 6, 7]), Text(desk, 1, [0, 1, 2, 3])
    ended.go(5)
    text.go(5)
    desk.submit(SwapOut(5, 2, 1, 0, u32([4, 5, 6, 7])), SwapOut(6, 1, 1, 0, u32([0, 1])))
    desk.run()
    desk.submit(SwapIn(7, 2, 1, 0, u32([0, 1, 2, 3]), u32([4, 5, 6, 7])), SwapOut(8, 1, 2, 0, u32([2, 3])))
    desk._note(desk.core.step(0.0))
    desk.submit(CancelInferlet(9, 2))
    desk.run()
    assert 7 not in desk.answers
    slots = [slot for ticket in (6, 8) for slot in np.frombuffer(desk.answers[ticket], "<u4").tolist()]
    scribble(desk, [0, 1, 2, 3])
    text.pages = [16, 17, 18, 19]
    desk.submit(SwapIn(10, 1, 1, 0, u32(slots), u32(text.pages)))
    text.go(7)
    for ours, theirs in zip(text.logits, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert desk.core.stats()["swap"]["used"] == 0
