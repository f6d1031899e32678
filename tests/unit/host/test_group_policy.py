"""Which device group a program computes on."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pieray.host.device.group_policy import GROUP_POLICIES, SLACK, SPREAD, by_content, least_loaded, round_robin
from pieray.host.device.group_table import MANY, MOST_EXPECTED, GroupTable


def table_of(*loads: float) -> GroupTable:
    table = GroupTable()
    for load in loads:
        table.set_load(table.open(), load)
    return table


def test_content_goes_where_most_of_it_is() -> None:
    table = table_of(0, 0, 0)
    table.know(1, [1, 2])
    table.know(2, [1])
    assert by_content(table, [1, 2, 3], 0) == 1
    table.set_load(1, 1)
    assert by_content(table, [1, 9], 0) == 2
    table.forget(2, [1])
    assert by_content(table, [1, 9], 0) == 1
    assert table.is_known(1, 2)
    assert not table.is_known(2, 1)


def test_content_does_not_draw_all_to_one_group() -> None:
    table = table_of(0, 0, 0)
    table.know(1, [1])
    for turn in range(300):
        table.add_load(by_content(table, [1], turn))
    assert table.loads.max() <= SPREAD * 100 + SLACK + 1


def test_texts_that_begin_alike_and_that_nobody_has_meet_on_two_groups_at_most() -> None:
    table = table_of(*[0] * 16)
    assert len({by_content(table, [77, n], n) for n in range(50)}) <= 2


def test_the_second_of_a_text_that_is_about_to_be_computed_follows_the_first() -> None:
    table = table_of(*[0] * 16)
    first = by_content(table, [77, 1], 0)
    table.choose(first, [77, 1])
    assert {by_content(table, [77, n], n) for n in range(20)} == {first}
    table.set_load(first, 9)
    assert by_content(table, [77, 2], 0) != first, "it has much more to do than others"
    table.set_load(first, 0)
    table.close(first)
    assert by_content(table, [77, 2], 0) != first


def test_what_is_expected_takes_no_memory_for_ever() -> None:
    table = table_of(0, 0)
    for one in range(MOST_EXPECTED + 10):
        table.choose(0, [one])
    assert len(table._expected) == MOST_EXPECTED
    assert table.expected([5], 1e9) is None
    assert table.expected([MOST_EXPECTED], 1e9) == 0


def test_texts_of_all_kinds_are_spread() -> None:
    table, rng = table_of(*[0] * 8), random.Random(1)
    for turn in range(800):
        table.add_load(by_content(table, [rng.randrange(1 << 32)], turn))
    assert table.loads.max() <= 1.2 * 100


def test_of_many_that_hold_a_text_one_with_little_to_do_is_taken() -> None:
    table = table_of(*[5] * 4 * MANY)
    for row in table.rows:
        table.know(row, [1, 2])
    table.set_load(77, 4)
    assert by_content(table, [1, 2, 3], 0) == 77


def test_nothing_to_look_up_goes_to_the_least_loaded_in_turn() -> None:
    table = table_of(3, 1, 1)
    assert [by_content(table, [], turn) for turn in range(3)] == [1, 2, 1]
    assert [least_loaded(table, [1], turn) for turn in range(3)] == [1, 2, 1]
    assert [round_robin(table, [1], turn) for turn in range(4)] == [0, 1, 2, 0]


def test_a_group_that_is_gone_is_forgotten_and_its_row_is_given_out_again() -> None:
    table = table_of(*range(9))
    table.know(3, [1, 2])
    table.close(3)
    assert by_content(table, [1], 0) != 3
    assert 3 not in {round_robin(table, [], turn) for turn in range(20)}
    assert table.open() == 3
    assert not table.is_known(3, 1)
    assert table.loads.tolist() == [0, 1, 2, 0, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", GROUP_POLICIES)
@given(
    loads=st.lists(st.integers(0, 50), min_size=1, max_size=9),
    held=st.lists(st.sets(st.integers(0, 5)), min_size=9, max_size=9),
    prints=st.lists(st.integers(0, 5), max_size=6),
    turn=st.integers(0, 1 << 40),
)
def test_one_of_those_there_are_is_chosen(
    name: str, loads: list[int], held: list[set[int]], prints: list[int], turn: int
) -> None:
    table = table_of(*loads)
    for row, own in zip(table.rows, held, strict=False):
        table.know(row, own)
    chosen = GROUP_POLICIES[name](table, prints, turn)
    assert chosen in table.rows
    if name == "content":
        mean = (sum(loads) + 1) / len(loads)
        assert loads[chosen] + 1 <= SPREAD * mean + SLACK or loads[chosen] == min(loads)
        depths = [next((n for n, one in enumerate(prints) if one not in own), len(prints)) for own in held]
        fit = [row for row in table.rows if loads[row] + 1 <= SPREAD * mean + SLACK]
        best = max((depths[row] for row in fit), default=0)
        assert not best or depths[chosen] == best
