"""What a supervisor remembers is bounded: restarts in a window, places of the inferlets launched last."""

from __future__ import annotations

import pytest

from pieray.actors import records
from pieray.actors.pool import Member
from pieray.actors.records import KEEP_LOCATIONS, MAX_RESTARTS, RESTART_WINDOW_S, Locations, Restarts
from pieray.errors import EngineError


def test_restarts_are_few_within_a_window_and_free_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(records.time, "monotonic", lambda: now)
    restarts = Restarts()
    for _ in range(MAX_RESTARTS):
        restarts.spend("batcher")
    with pytest.raises(EngineError, match="5 restarts within 60 s are the limit; broker would be one more"):
        restarts.spend("broker")
    assert restarts.num_recent == MAX_RESTARTS
    now += RESTART_WINDOW_S + 1
    restarts.spend("broker")
    assert restarts.num_recent == 1


def test_the_oldest_locations_go_and_those_on_a_dead_actor_at_once() -> None:
    locations, dead, alive = Locations(), Member("inferlets", None), Member("inferlets", None)
    for i in range(KEEP_LOCATIONS + 1):
        locations.add(str(i), f"name {i}", alive if i % 2 else dead)
    assert locations.find("0") is None
    assert locations.find("1") == ("name 1", alive)
    locations.forget(dead)
    assert [locations.find(str(i)) is None for i in (2, 3)] == [True, False]
