"""The decode table: what a group of rows gives the runner is what the table holds, step after step."""

from __future__ import annotations

import numpy as np
import pytest

from pieray.messages import GREEDY
from pieray.sched.table import ROW, DecodeTable, Own

PAGE = 4


class FakeAdapter:
    """An adapter to the table is something with a number."""


def table_of(adapters: list[int], rooms: list[int]) -> DecodeTable:
    table = DecodeTable(PAGE)
    records = np.zeros(len(adapters), ROW)
    records["adapter"], records["room"], records["left"] = adapters, rooms, 100
    records["token"] = np.arange(len(adapters)) + 10
    records["kv_len"] = records["position"] = np.arange(len(adapters)) * 2
    pages = np.arange(len(adapters) * 8, dtype=np.uint32).reshape(-1, 8)
    own = [Own(GREEDY, FakeAdapter() if one else None, None) for one in adapters]  # type: ignore[arg-type]
    table.append(records, pages, own)
    return table


@pytest.mark.parametrize(
    ("adapters", "rooms"),
    [([0, 0, 0], [32, 32, 32]), ([0, 2, 0, 1, 2], [32] * 5), ([0, 0, 0, 0], [32, 2, 32, 32]), ([1, 0, 2], [32, 2, 32])],
    ids=["all", "adapters", "one waits for a page", "both"],
)
def test_a_group_gives_the_runner_what_the_table_holds_in_each_step(adapters: list[int], rooms: list[int]) -> None:
    table = table_of(adapters, rooms)
    before = table.rows.copy()
    waiting = [row for row, room in enumerate(rooms) if before["kv_len"][row] >= room]
    for step in range(6):
        group = table.group(table.ready())
        assert sorted(group.rows.tolist()) == [row for row in range(len(rooms)) if row not in waiting]
        columns = group.columns()
        held = table.rows[group.rows]
        assert columns.tokens.tolist() == held["token"].tolist()
        assert columns.kv_lens.tolist() == columns.positions.tolist() == (before["kv_len"][group.rows] + step).tolist()
        assert np.array_equal(columns.pages, table.pages[group.rows])
        assert columns.choices["counter"].tolist() == (before["choice"]["counter"][group.rows] + step).tolist()
        segments = [(first, last, table.own[int(group.rows[first])].adapter) for _, first, last in columns.adapters]
        assert [one for one, _, _ in columns.adapters] == [adapter for _, _, adapter in segments]
        table.advance(group, np.arange(len(group)) + 100 * step)
    assert table.rows["token"][waiting].tolist() == before["token"][waiting].tolist()
