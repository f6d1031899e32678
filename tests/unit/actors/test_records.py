"""What a supervisor remembers is bounded: deaths in a window, places of the inferlets launched last."""

from __future__ import annotations

import pytest

from pieray.actors import records
from pieray.actors.members import INFERLETS, Member
from pieray.actors.records import FREE_RESTARTS, KEEP_LOCATIONS, MAX_DELAY_S, RESTART_WINDOW_S, Locations, Restarts


def test_deaths_are_mended_at_once_then_later_and_later_and_at_once_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(records.time, "monotonic", lambda: now)
    restarts = Restarts()
    delays = []
    for _ in range(FREE_RESTARTS + 7):
        restarts.note()
        delays.append(restarts.delay_s)
    assert delays == [0.0] * FREE_RESTARTS + [1.0, 2.0, 4.0, 8.0, 16.0, MAX_DELAY_S, MAX_DELAY_S]
    assert restarts.num_recent == FREE_RESTARTS + 7
    now += RESTART_WINDOW_S + 1
    assert (restarts.num_recent, restarts.delay_s) == (0, 0.0)


def test_the_oldest_locations_go_and_those_on_a_dead_actor_at_once() -> None:
    dead, alive = Member(INFERLETS, "a0", None), Member(INFERLETS, "a1", None)
    locations = Locations()
    for i in range(KEEP_LOCATIONS + 1):
        locations.add(str(i), f"name {i}", alive if i % 2 else dead)
    assert locations.find("0") is None
    assert locations.find("1") == ("name 1", alive)
    assert locations.on(alive)[:2] == [("1", "name 1"), ("3", "name 3")]
    locations.forget(dead)
    assert [locations.find(str(i)) is None for i in (2, 3)] == [True, False]
