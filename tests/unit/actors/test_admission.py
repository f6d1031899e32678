"""The line of launches: its order, who is refused when it is full, that nobody starves, when to come again."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pieray.actors.admission import (
    IDLE_RETRY_S,
    LEAST_RETRY_S,
    MOST_RETRY_S,
    OLDEST_EVERY,
    WINDOW_S,
    FreeRate,
    Line,
    Standing,
    Waiting,
)

STANDINGS = st.builds(
    Standing, st.sampled_from("abc"), st.integers(-3, 3), st.sampled_from([0.0, 5.0, 9.0]), st.booleans()
)


def join(line: Line[int], **fields: object) -> Waiting[int]:
    waiting = line.new(Standing(**fields))  # type: ignore[arg-type]
    assert line.join(waiting) is None
    return waiting


def serve(line: Line[int], num_places: int) -> list[Waiting[int]]:
    """So many places, all alike."""
    places = list(range(num_places))
    return line.serve(lambda _: places.pop() if places else None)


def test_places_go_by_priority_then_deadline_then_to_children_then_by_arrival() -> None:
    line: Line[int] = Line(100)
    plain, later, sooner = join(line), join(line, deadline=20.0), join(line, deadline=10.0)
    high, low, child, last = join(line, priority=1), join(line, priority=-1), join(line, is_child=True), join(line)
    assert serve(line, 6) == [high, sooner, later, child, plain, last]
    assert list(line) == [low]
    assert low.place is None
    assert high.place is not None


def test_a_place_that_suits_not_everybody_goes_to_the_first_that_it_suits() -> None:
    line: Line[int] = Line(100)
    picky, other = join(line, priority=1), join(line)
    picky.avoided.append(1)
    assert line.serve(lambda w: 1 if w is other and w.place is None else None) == [other]
    assert list(line) == [picky]


def test_who_ranks_last_is_refused_when_the_line_is_full() -> None:
    line: Line[int] = Line(2)
    first, low = join(line), join(line, priority=-1)
    late = line.new(Standing())
    assert line.join(late) is low
    assert low.is_displaced
    worst = line.new(Standing(priority=-5))
    assert line.join(worst) is worst
    assert list(line) == [first, late]
    line.check()


def test_a_tenant_that_fills_the_line_makes_room_for_others() -> None:
    line: Line[int] = Line(4)
    crowd = [join(line, tenant="crowd", priority=9) for _ in range(4)]
    ann = [line.new(Standing("ann")) for _ in range(3)]
    assert [line.join(one) for one in ann] == [crowd[3], crowd[2], ann[2]]
    assert line.by_tenant() == {"crowd": 2, "ann": 2}


@given(st.lists(STANDINGS | st.integers(0, 3), max_size=80), st.integers(1, 12))
def test_the_books_agree_and_each_is_served_refused_or_in_line(steps: list[Standing | int], most: int) -> None:
    line: Line[int] = Line(most)
    seen: list[Waiting[int]] = []
    gone: Counter[str] = Counter()
    for step in steps:
        if isinstance(step, Standing):
            seen.append(line.new(step))
            if (displaced := line.join(seen[-1])) is not None:
                assert displaced.is_displaced
                gone["refused"] += 1
        else:
            gone["served"] += len(serve(line, step))
        line.check()
    assert sum(gone.values()) + len(line) == len(seen)
    assert gone["served"] == sum(w.place is not None for w in seen)


@given(st.lists(st.lists(STANDINGS, max_size=12), min_size=1, max_size=8), STANDINGS, st.lists(STANDINGS, max_size=6))
def test_nobody_starves(storms: list[list[Standing]], last: Standing, before: list[Standing]) -> None:
    """However many come after it, and however they rank: one place at a time, and each is served in time."""
    line: Line[int] = Line(10_000)
    for standing in before:
        line.join(line.new(standing))
    mine = line.new(last)
    line.join(mine)
    num_places = 0
    while mine.place is None:
        for standing in storms[num_places % len(storms)]:
            line.join(line.new(standing))
        assert serve(line, 1) != []
        num_places += 1
        assert num_places <= OLDEST_EVERY * (len(before) + 1)


def test_when_to_come_again_follows_from_how_fast_places_come_free() -> None:
    rate = FreeRate(now=0.0)
    assert rate.retry_after_s(1, now=5.0) == IDLE_RETRY_S
    rate.note(0, now=6.0)
    for second in range(10, 20):
        rate.note(2, now=float(second))
    assert rate.retry_after_s(1, now=20.0) == pytest.approx(1.0)  # 20 in 20 seconds
    assert rate.retry_after_s(30, now=20.0) == pytest.approx(30.0)
    assert rate.retry_after_s(30, now=60.0) == pytest.approx(90.0)  # 20 in 60
    assert rate.retry_after_s(10_000, now=60.0) == MOST_RETRY_S
    assert rate.retry_after_s(1, now=75.0) == pytest.approx(6.0)  # 10 in 60: the others are forgotten
    assert rate.retry_after_s(1, now=20.0 + WINDOW_S) == IDLE_RETRY_S
    rate.note(10**6, now=90.0)
    assert rate.retry_after_s(1, now=90.0) == LEAST_RETRY_S
