"""Slots for swapped pages: each is free or of one owner, whatever comes in which order."""

from __future__ import annotations

import random

import pytest
from rounds import seeds

from pieray.errors import InvalidRequest, PierayError
from pieray.sched.swap_slots import SwapSlots

A, B, C = ("p", 1), ("p", 2), ("q", 1)


def held(slots: SwapSlots, owner: tuple[str, int], count: int) -> list[int]:
    """So many slots that keep pages."""
    taken = slots.take(owner, count)
    slots.keep(owner, taken, is_new=True)
    return taken


def used(slots: SwapSlots) -> int:
    return slots.status()["used"]


def test_the_lowest_free_slots_are_taken_as_many_as_there_are() -> None:
    slots = SwapSlots(5)
    assert held(slots, A, 2) == [0, 1]
    assert held(slots, B, 2) == [2, 3]
    slots.drop(A, [0])
    assert slots.take(B, 3) == [0, 4]
    assert slots.take(C, 1) == []
    assert slots.status() == {"slots": 5, "used": 5, "swapped_out": 4, "swapped_in": 0, "dropped": 1}


def test_without_slots_nothing_is_taken() -> None:
    assert SwapSlots(0).take(A, 3) == []


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        ([0, 2], "swapped page 2 is not this inferlet's"),  # another's
        ([0, 4], "swapped page 4 is not this inferlet's"),  # free
        ([0, 1 << 31], f"swapped page {1 << 31} is not this inferlet's"),  # none
        ([0, 0], "swapped page 0 is named twice"),
        ([0, 1], "swapped page 1 is to be read by an earlier command"),
    ],
)
def test_what_is_not_held_is_not_borrowed_and_nothing_changes(slots: list[int], text: str) -> None:
    pool = SwapSlots(8)
    held(pool, A, 2)
    held(pool, B, 2)
    pool.borrow(A, [1])
    with pytest.raises(InvalidRequest, match=text):
        pool.borrow(A, slots)
    pool.borrow(A, [0])
    assert used(pool) == 4


def test_what_is_dropped_while_it_is_busy_comes_free_behind_its_command() -> None:
    slots = SwapSlots(4)
    held(slots, A, 3)
    slots.borrow(A, [0, 1])
    slots.drop(A, [0, 2, 3, 99])
    assert used(slots) == 2
    slots.keep(A, [0, 1])  # the command has failed
    assert used(slots) == 1
    slots.borrow(A, [1])
    slots.drop(A, [1])
    slots.free(A, [1], is_read=True)
    assert slots.status() == {"slots": 4, "used": 0, "swapped_out": 3, "swapped_in": 1, "dropped": 2}


def test_an_inferlet_drops_nothing_of_anothers() -> None:
    slots = SwapSlots(4)
    mine = held(slots, A, 2)
    slots.drop(B, mine)
    slots.free(B, mine)
    slots.keep(B, mine)
    slots.borrow(A, mine)
    assert used(slots) == 2


def test_the_end_of_an_inferlet_or_peer_frees_its_slots_alone() -> None:
    slots = SwapSlots(9)
    held(slots, A, 2)
    slots.take(B, 1)
    mine = held(slots, C, 3)
    slots.close("p", 1)
    assert used(slots) == 4
    slots.close("p")
    assert used(slots) == 3
    slots.borrow(C, mine)
    slots.close("q")
    assert (used(slots), slots.take(A, 9)) == (0, list(range(9)))


def test_books_that_do_not_balance_are_told_with_every_term() -> None:
    slots = SwapSlots(9)
    held(slots, A, 2)
    slots._free.append(1)
    with pytest.raises(PierayError, match="used 2, free again 1, distinct 2, begun 2, total 9, owners 1"):
        slots.check()


@pytest.mark.parametrize("seed", seeds(40))
def test_swap_slots_are_conserved_and_never_shared(seed: int) -> None:
    """Against a plain model: of each owner what it holds, what is busy, and what of that is dropped."""
    rng = random.Random(seed)
    slots = SwapSlots(rng.choice([0, 1, 7, 40]))
    owners = [("p", 1), ("p", 2), ("q", 1), ("q", 2)]
    holds: dict[tuple[str, int], set[int]] = {owner: set() for owner in owners}
    busy: dict[tuple[str, int], list[set[int]]] = {owner: [] for owner in owners}
    dropped: dict[tuple[str, int], set[int]] = {owner: set() for owner in owners}

    def owned(owner: tuple[str, int]) -> set[int]:
        return holds[owner].union(*busy[owner])

    for _ in range(400):
        owner, choice = rng.choice(owners), rng.random()
        some = {slot for slot in range(slots.total + 2) if rng.random() < 0.3}
        if choice < 0.3:
            count = rng.randint(0, 9)
            taken = slots.take(owner, count)
            everybody = set().union(*map(owned, owners))
            assert not everybody.intersection(taken)
            assert taken == [slot for slot in range(slots.total) if slot not in everybody][:count]
            busy[owner].append(set(taken))
        elif choice < 0.5:
            if some <= holds[owner]:
                slots.borrow(owner, sorted(some))
                holds[owner] -= some
                busy[owner].append(some)
            else:
                with pytest.raises(InvalidRequest):
                    slots.borrow(owner, rng.sample(sorted(some), len(some)))
        elif choice < 0.65:
            slots.drop(owner, sorted(some))
            dropped[owner] |= some & set().union(*busy[owner])
            holds[owner] -= some
        elif choice < 0.97 and busy[owner]:
            ended = busy[owner].pop(rng.randrange(len(busy[owner])))
            if rng.random() < 0.5:
                slots.keep(owner, sorted(ended))
                holds[owner] |= ended - dropped[owner]
            else:
                slots.free(owner, sorted(ended))
            dropped[owner] -= ended
        elif choice >= 0.97:
            peer, inferlet = owner[0], rng.choice([owner[1], None])
            slots.close(peer, inferlet)
            for one in owners:
                if one[0] == peer and inferlet in (None, one[1]):
                    holds[one], busy[one], dropped[one] = set(), [], set()
        assert used(slots) == len(set().union(*map(owned, owners)))
    for owner in owners:
        slots.close(*owner)
    assert slots.take(("p", 1), slots.total + 1) == list(range(slots.total))
