"""A client's places: asked for together, used while they last, dropped with what holds them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pieray.client.placements import Grant, Placements
from pieray.errors import NoAnswer
from pieray.transport import Endpoint

WIRE = Endpoint("inproc", "host", 1).to_wire()


class Controller:
    """Grants `most` places in all; `gate` holds its answers back."""

    def __init__(self, most: int = 1000, lifetime_s: float = 30.0, num_actors: int = 1) -> None:
        self.num_actors = num_actors
        self.left = most
        self.lifetime_s = lifetime_s
        self.asked: list[int] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, wanted: int) -> Sequence[Sequence[Any]]:
        self.asked.append(wanted)
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        given = min(wanted, self.left)
        if not given:
            return []
        self.left -= given
        parts = [given - given // self.num_actors * (self.num_actors - 1)]
        parts += [given // self.num_actors] * (self.num_actors - 1)
        name = f"g{len(self.asked)}"
        return [(WIRE, f"{name}-{i}", part, self.lifetime_s, 5000.0) for i, part in enumerate(parts) if part]


def test_one_answer_serves_all_who_wait() -> None:
    controller = Controller()
    placements = Placements(controller)
    controller.gate.clear()
    with ThreadPoolExecutor(32) as threads:
        first = threads.submit(placements.take)
        while not controller.asked:
            time.sleep(0.001)
        others = [threads.submit(placements.take) for _ in range(31)]
        while placements._num_waiting < 32:
            time.sleep(0.001)
        controller.gate.set()
        grants = [one.result(10) for one in [first, *others]]
    assert all(grant is not None for grant in grants)
    assert controller.asked[0] == 4  # for itself alone: the others came later
    assert len(controller.asked) <= 3
    assert sum(grant.num_used for grant in placements._grants) == 32
    assert all(grant.num_used <= grant.num_places for grant in placements._grants)


def test_a_place_that_was_given_back_is_used_again() -> None:
    controller = Controller()
    placements = Placements(controller)
    for _ in range(50):
        grant = placements.take()
        assert grant is not None
        placements.give_back(grant)
    assert controller.asked == [4]


def test_no_place_is_taken_of_a_grant_whose_time_is_over_or_that_was_dropped() -> None:
    controller = Controller(lifetime_s=0.05)
    placements = Placements(controller)
    first = placements.take()
    time.sleep(0.06)
    second = placements.take()
    assert first is not None
    assert second is not None
    assert second is not first
    placements.drop(second)
    assert placements.take() not in (first, second)
    assert len(controller.asked) == 3


def test_where_there_is_no_room_the_controller_is_not_asked_at_each_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(most=4)
    placements = Placements(controller)
    grants = [placements.take() for _ in range(20)]
    assert grants.count(None) == 16
    assert controller.asked == [4, 4]
    monkeypatch.setattr("pieray.client.placements.REFUSED_S", 0.0)
    controller.left = 10
    assert placements.take() is not None


def test_who_waits_for_a_controller_that_does_not_answer_is_told_with_who_asks() -> None:
    controller = Controller()
    controller.error = NoAnswer("the Controller does not answer")
    controller.gate.clear()
    placements = Placements(controller)
    with ThreadPoolExecutor(4) as threads:
        takes = [threads.submit(placements.take) for _ in range(4)]
        while placements._num_waiting < 4:
            time.sleep(0.001)
        time.sleep(0.05)
        controller.gate.set()
        for take in takes:
            with pytest.raises(NoAnswer, match="does not answer"):
                take.result(10)
    assert controller.asked == [4]
    controller.error = None
    assert placements.take() is not None


def test_the_clock_of_a_grant_is_its_actors() -> None:
    grant = Grant([WIRE, "g", 1, 30.0, 5000.0], time.monotonic())
    assert grant.clock.at(time.monotonic()) == pytest.approx(5000.0, abs=0.5)


def test_many_are_taken_at_once_as_far_as_there_are_places() -> None:
    controller = Controller(most=70)
    placements = Placements(controller)
    grants = placements.take_many(60)
    assert len(grants) == 60
    assert controller.asked == [64]
    assert len(placements.take_many(20)) == 10
    assert placements.take_many(5) == []
    assert placements.take_many(0) == []
    assert placements._num_waiting == 0
    assert sum(grant.num_used for grant in placements._grants) == 70
    for grant in grants:
        placements.give_back(grant)
    assert len(placements.take_many(100)) == 60


def test_when_asking_fails_none_of_many_is_taken() -> None:
    controller = Controller(most=64)
    placements = Placements(controller)
    controller.error = NoAnswer("frozen")
    with pytest.raises(NoAnswer):
        placements.take_many(3)
    controller.error = None
    first = placements.take_many(60)
    controller.error = NoAnswer("frozen")
    with pytest.raises(NoAnswer):
        placements.take_many(10)
    assert sum(grant.num_used for grant in placements._grants) == len(first)
    assert placements._num_waiting == 0


def test_launches_are_spread_over_the_actors_whose_places_are_granted() -> None:
    controller = Controller(num_actors=4)
    placements = Placements(controller)
    grants = placements.take_many(10)
    assert sorted(grant.num_used for grant in {id(grant): grant for grant in grants}.values()) == [2, 2, 3, 3]
    assert controller.asked == [22]
