"""Whose work comes next: by time used, nobody starves, idleness earns and forgives nothing."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pieray.broker.turns import Turns


def served(turns: Turns[int], cost: dict[str, float], num: int) -> Counter[str]:
    """Time given to each tenant in the next `num` turns, if each is always in line."""
    used: Counter[str] = Counter()
    for i in range(num):
        tenant, _ = turns.take()
        turns.charge(tenant, cost[tenant])
        used[tenant] += cost[tenant]  # type: ignore[assignment]
        turns.put(tenant, i)
    return used


def test_time_is_shared_whatever_a_piece_costs_and_however_long_the_lines_are() -> None:
    turns: Turns[int] = Turns()
    cost = {"small": 1.0, "large": 50.0, "medium": 7.0}
    for tenant in cost:
        for i in range(100 if tenant == "large" else 1):
            turns.put(tenant, i)
    used = served(turns, cost, 3000)
    assert max(used.values()) - min(used.values()) <= 50


def test_one_who_comes_waits_for_one_piece_of_anothers_flood() -> None:
    turns: Turns[int] = Turns()
    for i in range(10_000):
        turns.put("flood", i)
    for _ in range(100):
        turns.take()
        turns.charge("flood", 1.0)
    turns.put("comes", -1)
    assert turns.take() == ("comes", -1)


def test_a_tenant_has_its_work_in_order_and_goes_on_with_what_is_not_finished() -> None:
    turns: Turns[int] = Turns()
    for i in range(3):
        turns.put("t", i)
    _, first = turns.take()
    turns.charge("t", 1.0)
    turns.put_back("t", first)
    assert [turns.take()[1] for _ in range(3)] == [0, 1, 2]
    assert not turns


def test_who_was_idle_has_no_more_than_its_share() -> None:
    turns: Turns[int] = Turns()
    turns.put("busy", 0)
    served(turns, {"busy": 1.0}, 1000)
    turns.put("new", 0)
    used = served(turns, {"busy": 1.0, "new": 1.0}, 100)
    assert abs(used["busy"] - used["new"]) <= 1


def test_leaving_the_line_forgives_nothing() -> None:
    turns: Turns[int] = Turns()
    turns.put("steady", 0)
    turns.put("coming and going", 0)
    used: Counter[str] = Counter()
    for i in range(100):
        tenant, _ = turns.take()
        turns.charge(tenant, cost := 10 if tenant != "steady" else 1)
        used[tenant] += cost
        turns.put("steady", i)
        if i % 2 and tenant == "steady":
            turns.put("coming and going", i)
    assert used["coming and going"] <= used["steady"] + 20


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 100)), max_size=200), st.integers(0, 2**32))
def test_everything_is_served_once_in_the_order_of_its_tenant(puts: list[tuple[str, int]], seed: int) -> None:
    turns: Turns[int] = Turns()
    found: dict[str, list[int]] = {}
    for i, (tenant, cost) in enumerate(puts):
        turns.put(tenant, i)
        if (seed >> (i % 32)) & 1:
            who, number = turns.take()
            turns.charge(who, cost)
            found.setdefault(who, []).append(number)
    while turns:
        who, number = turns.take()
        found.setdefault(who, []).append(number)
    expected: dict[str, list[int]] = {}
    for i, (tenant, _) in enumerate(puts):
        expected.setdefault(tenant, []).append(i)
    assert found == expected


def test_tenants_that_are_gone_leave_nothing_behind() -> None:
    turns: Turns[int] = Turns()
    turns.put("stays", 0)
    for i in range(10_000):
        turns.put(f"tenant-{i}", i)
        for _ in range(2):
            tenant, _ = turns.take()
            if tenant == "stays":
                turns.put("stays", 0)
            turns.charge(tenant, 1e-6)
    assert len(turns._used) < 200
    while turns:
        turns.charge(turns.take()[0], 1.0)
    assert not turns._used
