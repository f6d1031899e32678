"""Which device group a program computes on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pieray.host.device.group_policy import GROUP_POLICIES, SLACK, SPREAD, by_content, least_loaded, round_robin


@dataclass
class Group:
    load: float = 0
    prints: set[int] = field(default_factory=set)

    def num_found(self, prints: Sequence[int]) -> int:
        return next((place for place, one in enumerate(prints) if one not in self.prints), len(prints))


def test_content_goes_where_most_of_it_is() -> None:
    groups = [Group(), Group(prints={1, 2}), Group(prints={1})]
    assert by_content(groups, [1, 2, 3], 0) is groups[1]
    assert by_content(groups, [1, 9], 0) in groups[1:]
    groups[1].load = 1
    assert by_content(groups, [1, 9], 0) is groups[2]


def test_content_does_not_draw_all_to_one_group() -> None:
    groups = [Group(), Group(prints={1}), Group()]
    for _ in range(300):
        by_content(groups, [1], 0).load += 1
    assert max(group.load for group in groups) <= SPREAD * 100 + SLACK + 1


def test_texts_that_begin_alike_and_that_nobody_has_meet_on_two_groups_at_most() -> None:
    groups = [Group() for _ in range(16)]
    chosen = {id(by_content(groups, [77, n], n)) for n in range(50)}
    assert len(chosen) <= 2


def test_texts_of_all_kinds_are_spread() -> None:
    groups, rng = [Group() for _ in range(8)], random.Random(1)
    for turn in range(800):
        by_content(groups, [rng.randrange(1 << 32)], turn).load += 1
    loads = [group.load for group in groups]
    assert max(loads) <= 1.2 * 100


def test_nothing_to_look_up_goes_to_the_least_loaded_in_turn() -> None:
    groups = [Group(3), Group(1), Group(1)]
    assert [by_content(groups, [], turn) for turn in range(3)] == [groups[1], groups[1], groups[2]]
    assert [least_loaded(groups, [1], turn) for turn in range(3)] == [groups[1], groups[1], groups[2]]
    assert [round_robin(groups, [1], turn) for turn in range(4)] == [*groups, groups[0]]


@pytest.mark.parametrize("name", GROUP_POLICIES)
@given(
    loads=st.lists(st.integers(0, 50), min_size=1, max_size=9),
    held=st.lists(st.sets(st.integers(0, 5)), min_size=9, max_size=9),
    prints=st.lists(st.integers(0, 5), max_size=6),
    turn=st.integers(0, 1 << 40),
)
def test_one_of_those_given_is_chosen(
    name: str, loads: list[int], held: list[set[int]], prints: list[int], turn: int
) -> None:
    groups = [Group(load, own) for load, own in zip(loads, held, strict=False)]
    chosen = GROUP_POLICIES[name](groups, prints, turn)
    assert chosen in groups
    if name == "content":
        mean = (sum(loads) + 1) / len(loads)
        assert chosen.load + 1 <= SPREAD * mean + SLACK or chosen.load == min(loads)
