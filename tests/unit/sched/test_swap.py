"""Swaps in the batcher core: their order among other commands, whose the slots are, and what a failure leaves."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from pieray.errors import DeviceLost, InvalidRequest
from pieray.messages import (
    CancelInferlet,
    Completed,
    CopyTokens,
    DropSwapped,
    Failed,
    Forward,
    Message,
    SwapIn,
    SwapOut,
)
from pieray.model_settings import ModelSettings
from pieray.sched.core import BatcherCore
from pieray.sched.costs import CostModel, Kind
from tests.support.digest_runner import VOCAB, DigestRunner

PAGE = 4


def u32(*numbers: int) -> bytes:
    return np.array(numbers, "<u4").tobytes()


def numbers(packed: Any) -> list[int]:
    found: list[int] = np.frombuffer(packed, "<u4").tolist()
    return found


class Runner(DigestRunner):
    """Keeps what it is asked to swap; page 99 is outside of its pool."""

    def __init__(self) -> None:
        super().__init__(PAGE)
        self.moved: list[tuple[str, list[int], list[int]]] = []

    def swap_out(self, pages, slots):
        self._refuse(pages)
        self.moved.append(("out", pages.tolist(), slots.tolist()))
        super().swap_out(pages, slots)

    def swap_in(self, slots, pages):
        self._refuse(pages)
        self.moved.append(("in", slots.tolist(), pages.tolist()))
        super().swap_in(slots, pages)

    def _refuse(self, pages) -> None:
        if 99 in pages:
            raise InvalidRequest("swap: page 99 is outside of 64 pages")
        if 98 in pages:
            raise DeviceLost("cuda:0 is dead")

    def write(self, *pages: int, base: int = 0) -> None:
        """Something in each page that is like nothing else."""
        self.slots |= {(page, offset): (base + page, offset) for page in pages for offset in range(PAGE)}

    def page(self, page: int) -> list[tuple[int, int] | None]:
        return [self.slots.get((page, offset)) for offset in range(PAGE)]


class Desk:
    def __init__(self, num_slots: int = 10, costs: CostModel | None = None, **options: int) -> None:
        self.runner = Runner()
        self.core = BatcherCore(
            self.runner, ModelSettings(page_size=PAGE), costs=costs, num_swap_slots=num_slots, **options
        )
        self.answers: dict[tuple[str, int], Message] = {}

    def submit(self, *messages: Message, peer: str = "p") -> None:
        self._note(self.core.submit(peer, messages, 0.0))

    def step(self) -> list[int]:
        """Tickets that are answered."""
        return self._note(self.core.step(0.0))

    def run(self) -> None:
        while self.core.has_work:
            self.step()

    def out(self, *pages: int, inferlet: int = 1, peer: str = "p") -> list[int]:
        """Swap out and run: the slots."""
        self.submit(swap_out(900, *pages, inferlet=inferlet), peer=peer)
        self.run()
        answer = self.answers.pop((peer, 900))
        assert isinstance(answer, Completed), answer
        return numbers(answer.value)

    def told(self, ticket: int, peer: str = "p") -> Any:
        """The value of an answer, or code and text of an error."""
        answer = self.answers[peer, ticket]
        return (answer.code, answer.message) if isinstance(answer, Failed) else answer.value  # type: ignore[attr-defined]

    @property
    def used(self) -> int:
        found: int = self.core.stats()["swap"]["used"]
        return found

    def _note(self, answers: list[tuple[str, Message]]) -> list[int]:
        tickets = []
        for peer, message in answers:
            ticket: int = message.ticket  # type: ignore[attr-defined]
            assert (peer, ticket) not in self.answers, f"{ticket} is answered twice"
            self.answers[peer, ticket] = message
            tickets.append(ticket)
        return tickets


def swap_out(ticket: int, *pages: int, inferlet: int = 1, queue: int = 1) -> SwapOut:
    return SwapOut(ticket, inferlet, queue, 0, u32(*pages))


def swap_in(ticket: int, slots: list[int], pages: list[int], *, inferlet: int = 1, queue: int = 1) -> SwapIn:
    return SwapIn(ticket, inferlet, queue, 0, u32(*slots), u32(*pages))


def forward(ticket: int, pages: list[int], kv_len: int = 0, count: int = 1, *, inferlet: int = 1, queue: int = 1):
    return Forward(ticket, inferlet, queue, 0, u32(*pages), kv_len, u32(*range(count)), b"", b"", [])


# --- slots ---------------------------------------------------------------------------------------


def test_pages_go_to_slots_and_come_back_to_others():
    desk = Desk()
    desk.runner.write(3, 5)
    kept = [desk.runner.page(page) for page in (3, 5)]
    assert desk.out(3, 5) == [0, 1]
    desk.runner.write(3, 5, base=100)
    desk.submit(swap_in(2, [1, 0], [7, 8]))
    assert desk.step() == [2]
    assert [desk.runner.page(page) for page in (8, 7)] == kept
    assert (desk.told(2), desk.used) == (None, 0)
    assert desk.core.stats()["swap"] == {"slots": 10, "used": 0, "swapped_out": 2, "swapped_in": 2, "dropped": 0}
    assert desk.core.stats()["copies"] == 0


def test_a_full_pool_takes_the_first_pages_and_says_which():
    desk = Desk(num_slots=3)
    desk.submit(swap_out(1, 1, 2), swap_out(2, 3, 4, queue=2), swap_out(3, 5, inferlet=2))
    desk.run()
    assert [numbers(desk.told(ticket)) for ticket in (1, 2, 3)] == [[0, 1], [2], []]
    assert desk.runner.moved == [("out", [1, 2], [0, 1]), ("out", [3], [2])]
    desk.submit(DropSwapped(1, u32(1)))
    assert desk.out(5, inferlet=2) == [1]


def test_without_a_pool_nothing_is_swapped():
    desk = Desk(num_slots=0)
    assert desk.out(1, 2) == []
    assert desk.runner.moved == []


def test_no_pages_are_no_work():
    desk = Desk()
    assert desk.out() == []
    desk.submit(swap_in(2, [], []))
    desk.run()
    assert (desk.told(2), desk.runner.moved) == (None, [])


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (swap_in(5, [0, 1], [7, 8], inferlet=2), "swapped page 0 is not this inferlet's"),
        (swap_in(5, [2, 9], [7, 8], inferlet=2), "swapped page 9 is not this inferlet's"),
        (swap_in(5, [2, 2], [7, 8], inferlet=2), "swapped page 2 is named twice"),
        (swap_in(5, [2], [7, 8], inferlet=2), "given 1 slots and 2 pages"),
        (swap_in(5, [2, 3], [7, 7], inferlet=2), r"given 2 slots and 1 pages \(2 named\)"),
        (SwapIn(5, 2, 1, 0, b"abc", b""), "malformed command"),
        (SwapIn(5, 2, 1, 0, None, u32(7)), "malformed command"),  # type: ignore[arg-type]
        (SwapOut(5, 2, 1, 0, b"abcde"), "malformed command"),
        (SwapOut(5, 2, 1, 0, 7), "malformed command"),  # type: ignore[arg-type]
        (swap_out(5, 99, inferlet=2), "page 99 is outside"),
        (swap_in(5, [2, 3], [7, 99], inferlet=2), "page 99 is outside"),
    ],
)
def test_a_wrong_swap_fails_alone_and_moves_nothing(message: Message, text: str):
    desk = Desk()
    desk.out(1, 2)
    desk.out(3, 4, inferlet=2)
    desk.runner.moved.clear()
    desk.submit(message, forward(6, [20], inferlet=2), swap_in(7, [0], [9]))
    desk.run()
    code, found = desk.told(5)
    assert code == "invalid"
    assert re.search(text, found)
    assert (desk.told(6), desk.told(7), desk.runner.moved) == (None, None, [("in", [0], [9])])
    desk.submit(swap_in(8, [2, 3], [5, 6], inferlet=2))  # it has its slots still
    desk.run()
    assert (desk.told(8), desk.used) == (None, 1)


@pytest.mark.parametrize("slots", [b"abc", None, u32(1 << 31), u32(0, 1)])
def test_what_is_dropped_is_the_inferlets_own_or_nothing(slots: Any):
    desk = Desk()
    desk.out(1, 2)
    desk.submit(DropSwapped(2, slots), DropSwapped(1, b"abc"), DropSwapped([], slots))  # type: ignore[arg-type]
    assert (desk.used, desk.answers) == (2, {})
    desk.submit(DropSwapped(1, u32(0, 1, 0, 5)))
    assert desk.used == 0


def test_a_drop_behind_a_swap_in_takes_nothing_from_it():
    desk = Desk()
    desk.runner.write(1, 2)
    kept = desk.runner.page(1)
    slots = desk.out(1, 2)
    desk.submit(swap_in(5, slots[:1], [7]), DropSwapped(1, u32(*slots)), swap_out(6, 30, 31, inferlet=2))
    desk.run()
    assert (desk.runner.page(7), desk.told(5)) == (kept, None)
    assert numbers(desk.told(6)) == [1, 2]  # slot 0 was busy
    assert desk.used == 2


def test_a_dropped_slot_whose_swap_fails_comes_free():
    desk = Desk()
    slots = desk.out(1, 2)
    desk.submit(swap_in(5, slots, [7, 99]), DropSwapped(1, u32(*slots[:1])))
    desk.run()
    assert desk.told(5)[0] == "invalid"
    assert desk.used == 1


def test_a_slot_is_read_once():
    desk = Desk()
    slots = desk.out(1)
    desk.submit(swap_in(5, slots, [7]), swap_in(6, slots, [8]))
    assert desk.told(6) == ("invalid", "swapped page 0 is to be read by an earlier command")
    desk.run()
    desk.submit(swap_in(7, slots, [8]))
    assert desk.told(7) == ("invalid", "swapped page 0 is not this inferlet's")


# --- order ---------------------------------------------------------------------------------------


def test_a_swap_out_waits_for_what_writes_its_pages_and_holds_up_what_overwrites_them():
    desk = Desk()
    desk.submit(
        forward(1, [10], 0, 3), swap_out(2, 10, queue=2), forward(3, [10], 3, 1, queue=3), swap_out(4, 11, queue=4)
    )
    assert sorted(desk.step()) == [1, 4]
    assert sorted(desk.step()) == [2, 3]  # swaps run at the start of a step
    held = desk.runner.host[numbers(desk.told(2))[0]]
    assert [one is not None for one in held] == [True, True, True, False]


def test_what_touches_its_pages_waits_for_a_swap_in_whatever_the_queue():
    desk = Desk(max_swap_pages=1)
    desk.runner.write(1, 2)
    kept = [desk.runner.page(page) for page in (1, 2)]
    slots = desk.out(1, 2)
    copy = CopyTokens(6, 1, 2, 0, [[8, 0, 9, 0, PAGE]])
    desk.submit(swap_in(5, slots, [7, 8]), copy, forward(7, [20], queue=3))
    assert desk.step() == [7]
    assert desk.step() == [5, 6]  # the copy is in the step of the last part
    assert [desk.runner.page(page) for page in (7, 8, 9)] == [*kept, kept[1]]


def test_a_large_swap_goes_in_parts_and_neighbours_run_meanwhile():
    desk = Desk(num_slots=9, max_swap_pages=4)
    desk.submit(swap_out(1, *range(10)), swap_out(2, 20, inferlet=2))
    for ticket in (10, 11):
        desk.submit(forward(ticket, [40], inferlet=3))
        assert desk.step() == [ticket]
    assert desk.step() == [1, 2]
    assert [len(pages) for _, pages, _ in desk.runner.moved] == [4, 4, 1]
    assert (numbers(desk.told(1)), numbers(desk.told(2))) == (list(range(9)), [])


def test_a_swap_is_cut_to_its_inferlets_share_and_the_neighbour_decodes_in_every_step():
    costs = CostModel(VOCAB)
    desk = Desk(num_slots=400, costs=costs)
    desk.submit(swap_out(1, *range(1000, 1400)))
    parts = []
    for ticket in range(100, 200):
        desk.submit(forward(ticket, [500], inferlet=2))
        assert ticket in desk.step()
        parts.append(len(desk.runner.moved[-1][1]))
        if ("p", 1) in desk.answers:
            break
    assert len(numbers(desk.told(1))) == sum(parts) == 400
    two_steps = 2 * (costs.bare + costs.seconds[Kind.COMMANDS])
    assert max(parts) * costs.seconds[Kind.SWAPS] <= two_steps < 400 * costs.seconds[Kind.SWAPS] / 10


# --- ends ----------------------------------------------------------------------------------------


def test_pages_that_a_failed_command_was_to_write_are_swapped_as_they_are():
    desk = Desk(max_swap_pages=2)
    desk.runner.write(10, 20, 21)
    before = desk.runner.page(10)
    unwritten = forward(1, [10], 2)  # its first slots hold nothing that it could go on from: it fails
    desk.submit(unwritten, swap_out(2, 20, 21, 10, queue=2), swap_out(3, 20, queue=3))
    desk.run()
    assert desk.told(1)[0] == "internal"
    slots = numbers(desk.told(2))
    assert (len(slots), len(numbers(desk.told(3))), desk.used) == (3, 1, 4)
    desk.submit(swap_in(4, slots, [30, 31, 32]), forward(5, [10], 3, queue=4))
    desk.run()
    assert desk.runner.page(32)[:2] == before[:2]
    assert desk.told(5)[0] == "cancelled"  # on the page itself it is unwritten still
    assert (desk.told(4), desk.used) == (None, 1)


def test_a_failed_swap_in_fails_what_reads_its_pages():
    desk = Desk()
    slots = desk.out(1, 2)
    desk.submit(swap_in(5, slots, [7, 99]), forward(6, [7], 2, queue=2), forward(7, [8], queue=3))
    desk.run()
    assert [desk.told(5)[0], desk.told(6)[0], desk.told(7)] == ["invalid", "cancelled", None]
    desk.submit(swap_in(8, slots, [7, 8]))
    desk.run()
    assert (desk.told(8), desk.used) == (None, 0)


def test_the_end_of_an_inferlet_drops_its_swaps_and_frees_its_slots_in_their_middle():
    desk = Desk(max_swap_pages=1)
    slots = desk.out(1, 2, 3)
    other = desk.out(4, inferlet=2)
    desk.submit(swap_in(5, slots, [7, 8, 9]), swap_out(6, 11, 12, queue=2))
    desk.step()
    desk.submit(CancelInferlet(7, 1))
    assert (desk.told(7), desk.used) == (None, 1)
    desk.run()
    assert {("p", 5), ("p", 6)}.isdisjoint(desk.answers)
    assert desk.out(20, 21, 22, 23, inferlet=3) == [0, 1, 2, 4]
    desk.submit(swap_in(8, other, [9], inferlet=2))
    desk.run()
    assert (desk.told(8), desk.used) == (None, 4)


def test_the_loss_of_a_peer_frees_its_slots_in_the_middle_of_swaps_and_nobody_elses():
    desk = Desk(max_swap_pages=1)
    mine = desk.out(1, 2, peer="q")
    desk.out(3, 4)
    desk.out(5, inferlet=2)
    desk.submit(swap_out(5, 11, 12, 13))
    desk.step()
    assert desk.used == 6
    desk.core.drop_peer("p")
    assert desk.used == 2
    desk.run()
    assert desk.answers == {}
    desk.submit(swap_in(9, mine, [7, 8]), peer="q")
    desk.run()
    assert (desk.told(9, "q"), desk.used) == (None, 0)


def test_a_dead_device_fails_swaps_like_all_else():
    desk = Desk()
    desk.submit(swap_out(1, 98), swap_out(2, 3, inferlet=2))
    desk.step()
    assert desk.core.lost is not None
    assert {desk.told(ticket)[0] for ticket in (1, 2)} == {"device-lost"}
    assert desk.used == 0
