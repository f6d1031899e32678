"""Places granted to clients: each is free, used or back at the Controller, whatever happens in whatever order."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pieray.errors import NoRoom
from pieray.host.session.grants import Grants


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_place_is_free_again_when_its_inferlet_ends() -> None:
    grants = Grants(Clock())
    grants.open("g", 2, 10.0)
    grants.take("g")
    grants.take("g")
    with pytest.raises(NoRoom, match="all 2 places of the grant are taken"):
        grants.take("g")
    grants.give_back("g")
    grants.take("g")
    assert grants.num_returned == 0


def test_when_its_time_is_over_free_places_go_back_at_once_and_others_as_they_become_free() -> None:
    clock = Clock()
    grants = Grants(clock)
    grants.open("g", 3, 10.0)
    grants.take("g")
    clock.now += 10.0
    with pytest.raises(NoRoom, match="has ended"):
        grants.take("g")
    assert grants.num_returned == 2
    grants.give_back("g")
    assert grants.num_returned == 3
    with pytest.raises(NoRoom, match="has ended"):
        grants.take("g")


def test_an_unknown_grant_has_no_places() -> None:
    with pytest.raises(NoRoom, match="has ended"):
        Grants(Clock()).take("forged")


def test_a_recall_ends_all_of_them() -> None:
    grants = Grants(Clock())
    grants.open("a", 3, 10.0)
    grants.open("b", 1, 10.0)
    grants.take("a")
    grants.recall()
    grants.recall()
    assert grants.num_returned == 3
    for grant_id in "ab":
        with pytest.raises(NoRoom, match="has ended"):
            grants.take(grant_id)
    grants.give_back("a")
    assert grants.num_returned == 4
    assert grants._grants == {}


@given(st.integers())
def test_no_place_is_lost_and_none_is_given_twice(seed: int) -> None:
    rng, clock = Random(seed), Clock()
    grants = Grants(clock)
    used: list[str] = []
    number = granted = 0
    for _ in range(120):
        match rng.randrange(6):
            case 0:
                number += 1
                places = rng.randrange(1, 5)
                granted += places
                grants.open(f"g{number}", places, rng.uniform(1, 20))
            case 1 | 2 | 3:
                grant_id = f"g{rng.randrange(max(1, number - 3), number + 2)}"
                try:
                    grants.take(grant_id)
                except NoRoom:
                    pass
                else:
                    used.append(grant_id)
            case 4 if used:
                grants.give_back(used.pop(rng.randrange(len(used))))
            case 5:
                clock.now += rng.uniform(0, 4)
                if rng.random() < 0.1:
                    grants.recall()
        grants.check()
        assert grants.num_returned + len(used) <= granted
    for grant_id in used:
        grants.give_back(grant_id)
    clock.now += 30.0
    assert grants.num_returned == granted
    grants.check()
