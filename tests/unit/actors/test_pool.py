"""Placing inferlets on actors, without Ray."""

from __future__ import annotations

import pytest

from pieray.actors.pool import KEEP_IDLE_S, HostPool, Member
from pieray.errors import EngineError, InvalidRequest


class Fleet:
    """Fake actors that count what is launched on them."""

    def __init__(self, capacity: int, spare: int = 1) -> None:
        self.live: dict[str, int] = {}
        self.ended: list[str] = []
        self.silent: set[str] = set()
        self.capacity = capacity
        self.pool = HostPool(capacity=capacity, spare=spare, create=self.create, end=self.end, num_live=self.num_live)
        self.pool.add([self.create() for _ in range(spare)])

    def create(self) -> Member:
        name = f"a{len(self.live)}"
        self.live[name] = 0
        return Member("inferlets", name)

    def end(self, host: Member) -> None:
        self.ended.append(host.handle)

    def num_live(self, host: Member) -> int:
        if host.handle in self.silent:
            raise EngineError("the engine's actor is gone")
        return self.live[host.handle]

    def launch(self) -> str:
        def start(host: Member) -> None:
            if self.num_live(host) >= self.capacity:
                raise EngineError(f"inferlets_per_actor: the limit is {self.capacity}; one more was launched")
            self.live[host.handle] += 1

        return str(self.pool.launch(start).handle)


def test_inferlets_fill_actors_evenly_and_new_ones_come_when_all_are_full() -> None:
    fleet = Fleet(capacity=2, spare=2)
    assert [fleet.launch() for _ in range(5)] == ["a0", "a1", "a0", "a1", "a2"]


def test_room_is_made_before_it_is_needed() -> None:
    fleet = Fleet(capacity=1)
    assert fleet.launch() == "a0"
    fleet.pool.tend(now=0.0)
    assert fleet.live == {"a0": 1, "a1": 0}
    assert fleet.launch() == "a1"


def test_actors_that_nobody_needs_leave_and_not_before_their_time() -> None:
    fleet = Fleet(capacity=1)
    for _ in range(3):
        fleet.launch()
    start = max(h.used_at for h in fleet.pool.hosts())
    fleet.live = dict.fromkeys(fleet.live, 0)
    fleet.pool.tend(start + KEEP_IDLE_S / 2)
    assert fleet.ended == []
    fleet.pool.tend(start + KEEP_IDLE_S + 1)
    assert fleet.ended == []  # out of placement first
    fleet.live["a0"] = 1  # somebody had chosen it just before
    fleet.pool.tend(start + KEEP_IDLE_S + 2)
    assert fleet.ended == ["a1"]
    assert sorted(h.handle for h in fleet.pool.hosts()) == ["a0", "a2"]


def test_an_actor_that_does_not_answer_gets_nothing_and_keeps_no_place() -> None:
    fleet = Fleet(capacity=4, spare=2)
    fleet.silent = {"a0"}
    assert {fleet.launch() for _ in range(3)} == {"a1"}
    fleet.pool.tend(now=0.0)
    assert len(fleet.live) == 3
    dead = next(h for h in fleet.pool.hosts() if h.handle == "a0")
    fleet.pool.remove(dead)
    assert "a0" not in [h.handle for h in fleet.pool.hosts()]


def test_a_refused_launch_is_not_tried_elsewhere() -> None:
    fleet = Fleet(capacity=4)

    def refuse(_host: Member) -> None:
        raise InvalidRequest("no such program")

    with pytest.raises(InvalidRequest):
        fleet.pool.launch(refuse)
    assert len(fleet.live) == 1
