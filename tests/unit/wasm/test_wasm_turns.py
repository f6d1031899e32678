"""The order of turns: who has computed least comes first, and interrupts who has computed long."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from wasm_fakes import GUESTS_C, FakeHandlers, Watched

from pieray.errors import Cancelled
from pieray.wasm import fibers, ticker
from pieray.wasm.host import WasmHost
from pieray.wasm.turns import BEGIN_EVERY_S, OLDEST_FIRST_EVERY_S, TurnQueue


class Guest:
    def __init__(
        self,
        name: str,
        tenant: str = "",
        is_long: bool = False,
        is_background: bool = False,
        priority: int = 0,
        is_starting: bool = False,
    ) -> None:
        self.name, self.tenant, self.is_long, self.is_background = name, tenant, is_long, is_background
        self.priority, self.is_starting = priority, is_starting
        self.served = 0.0
        self.error: str | None = None


class Clock:
    """Stands still but for the turns that guests take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def turns(num_workers: int = 1, **more) -> tuple[TurnQueue[Guest], list[int]]:
    preempted: list[int] = []
    return TurnQueue(num_workers, lambda: preempted.append(1), clock=Clock(), **more), preempted


def turn(queue: TurnQueue[Guest], seconds: float, *, again: bool = True) -> str:
    """The next guest computes for so long."""
    guest = queue.get()
    assert guest is not None
    guest.is_starting = False
    queue._clock.now += seconds
    queue.charge(guest, seconds)
    if again:
        queue.put(guest)
    queue.release(guest)
    return guest.name


def test_equals_take_turns_as_they_come():
    queue, _ = turns()
    for name in "abc":
        queue.put(Guest(name))
    assert [turn(queue, 1.0) for _ in range(6)] == list("abcabc")


def test_who_computes_little_is_ahead_whenever_it_wakes():
    queue, _ = turns()
    spinner, light = Guest("spinner"), Guest("light")
    queue.put(spinner)
    for _ in range(20):
        assert turn(queue, 0.005) == "spinner"
        queue.put(light)
        assert turn(queue, 0.001, again=False) == "light"


def test_a_guest_that_was_away_has_saved_nothing_up():
    queue, _ = turns()
    queue.put(Guest("old"))
    for _ in range(100):
        turn(queue, 0.01)
    queue.put(Guest("new"))
    order = [turn(queue, 0.01) for _ in range(20)]
    assert order.count("new") == 10


def test_a_tenant_has_no_more_for_having_many_guests():
    queue, _ = turns()
    for _number in range(9):
        queue.put(Guest("many", "a"))
    queue.put(Guest("one", "b"))
    rng, used = random.Random(1), {"many": 0.0, "one": 0.0}
    for _ in range(4000):
        seconds = rng.uniform(0.001, 0.01)
        used[turn(queue, seconds)] += seconds
    assert used["one"] / used["many"] == pytest.approx(1.0, rel=0.1)
    assert len(queue) == 10


def test_a_tenant_has_as_much_as_its_weight_says():
    queue, _ = turns(weight_of={"a": 1.0, "b": 3.0}.__getitem__)
    for name, tenant in ("light", "a"), ("heavy", "b"), ("heavy", "b"):
        queue.put(Guest(name, tenant))
    used = Counter(turn(queue, 0.005) for _ in range(4000))
    assert used["heavy"] / used["light"] == pytest.approx(3.0, rel=0.1)


def test_a_tenant_that_was_away_has_saved_nothing_up():
    queue, _ = turns()
    queue.put(Guest("old", "a"))
    for _ in range(100):
        turn(queue, 0.01)
    queue.put(Guest("new", "b"))
    order = [turn(queue, 0.01) for _ in range(20)]
    assert order.count("new") in (10, 11)


def test_the_higher_priority_comes_first_and_interrupts():
    queue, preempted = turns()
    spinner = Guest("spinner", is_long=True)
    queue.put(spinner)
    assert queue.get() is spinner
    for number in range(5):
        queue.put(Guest(f"low{number}", is_long=True))
    high = Guest("high", priority=5)
    queue.charge(high, 10.0)
    assert not preempted
    queue.put(high)
    assert preempted == [1]
    queue.charge(spinner, 0.001)
    queue.put(spinner)
    queue.release(spinner)
    assert turn(queue, 0.001, again=False) == "high"
    assert turn(queue, 0.001, again=False) == "low0"


def test_no_lower_priority_interrupts_a_higher_one():
    queue, preempted = turns()
    high = Guest("high", is_long=True, priority=1)
    queue.put(high)
    assert queue.get() is high
    queue.put(Guest("low"))
    assert not preempted
    assert not queue.is_urgent()


def test_who_waits_beside_a_higher_priority_has_a_turn_after_a_bounded_wait():
    """Of n that wait, each has its turn within n + 1 times OLDEST_FIRST_EVERY_S and the turns of that time."""
    queue, _ = turns()
    queue.put(Guest("high", priority=100))
    low = [Guest(f"low{number}", priority=-number) for number in range(5)]
    for guest in low:
        queue.put(guest)
    at: dict[str, float] = {}
    while queue._clock.now < 30.0:
        name = turn(queue, 0.005)
        longest_s = queue._clock.now - at.get(name, 0.0)
        at[name] = queue._clock.now
        assert longest_s < (len(low) + 1) * (OLDEST_FIRST_EVERY_S + 0.01)
    assert len(at) == 6
    assert all(queue._clock.now - when < (len(low) + 1) * (OLDEST_FIRST_EVERY_S + 0.01) for when in at.values())


def test_a_priority_is_no_way_to_more_than_the_tenants_share():
    queue, _ = turns()
    for number in range(3):
        queue.put(Guest("pushy", "a", priority=100))
        queue.put(Guest(f"modest{number}", "b"))
    used = Counter(turn(queue, 0.005)[:6] for _ in range(2000))
    assert used["pushy"] / used["modest"] == pytest.approx(1.0, rel=0.1)


def test_starting_guests_are_held_back_while_pages_are_short_for_those_like_them():
    short, held = {0, 1}, []
    queue, preempted = turns(is_short=lambda guest: guest.priority in short, on_held=lambda: held.append(1))
    new, urgent, old = Guest("new", is_starting=True), Guest("urgent", is_starting=True, priority=2), Guest("old")
    queue.charge(old, 1.0)
    for guest in new, Guest("newer", is_starting=True, priority=1), old, urgent:
        queue.put(guest)
    assert [turn(queue, 0.001, again=False) for _ in range(2)] == ["urgent", "old"]
    assert (queue.num_held, len(held)) == (2, 2)
    assert not queue  # who is held back keeps nobody busy
    queue._began[""] = queue._clock.now, 0
    queue.let_in()
    assert queue.num_held == 2
    short.clear()
    queue.let_in()
    assert queue.num_held == 0
    assert [turn(queue, 0.001, again=False) for _ in range(2)] == ["newer", "new"]
    assert not preempted


def test_one_of_those_held_back_begins_now_and_then_and_who_is_to_end_at_once():
    queue, _ = turns(is_short=lambda _: True)
    queue.put(busy := Guest("busy", priority=-1))
    guests = [Guest(f"new{number}", is_starting=True, priority=number) for number in range(4)]
    for guest in guests:
        queue._clock.now += 0.001
        queue.put(guest)
    assert queue.get() is busy
    queue.release(busy)
    assert queue.num_held == 4
    began = []
    for _ in range(70):
        queue._clock.now += 0.01
        queue.let_in()
        began += [(turn(queue, 0.0, again=False), queue._clock.now) for _ in range(len(queue))]
    assert [name for name, _ in began] == ["new3", "new0", "new2"]  # by turns who goes first, and who came first
    assert began[2][1] - began[1][1] == pytest.approx(BEGIN_EVERY_S, abs=0.011)
    guests[1].error = "killed"
    queue.let_in()
    assert turn(queue, 0.0, again=False) == "new1"


def test_one_of_each_tenant_begins():
    queue, _ = turns(is_short=lambda _: True)
    queue.put(busy := Guest("busy", priority=-1))
    for number in range(50):
        queue.put(Guest(f"a{number}", "a", is_starting=True))
    queue.put(Guest("b", "b", is_starting=True))
    assert queue.get() is busy
    queue.release(busy)
    assert queue.num_held == 51
    queue.let_in()
    assert {turn(queue, 0.0, again=False) for _ in range(len(queue))} == {"a0", "b"}


def test_who_waits_to_start_and_is_not_held_back_starts_after_a_bounded_wait():
    queue, _ = turns()
    queue.put(Guest("busy", priority=1))
    queue.put(Guest("new", is_starting=True))
    names = [turn(queue, 0.01) for _ in range(60)]
    assert names.index("new") * 0.01 == pytest.approx(OLDEST_FIRST_EVERY_S, abs=0.02)


def test_the_background_has_what_nobody_wants_and_is_interrupted_for_anybody():
    queue, preempted = turns()
    background = Guest("background", is_long=True, is_background=True)
    queue.put(background)
    queue.put(Guest("spinner"))
    assert [turn(queue, 0.4) for _ in range(3)] == ["spinner"] * 3
    assert turn(queue, 1.0, again=False) == "spinner"
    assert queue.get() is background
    assert not preempted
    queue.charge(background, 100.0)
    queue.put(Guest("newcomer"))
    assert preempted == [1]
    queue.put(background)
    queue.release(background)
    assert turn(queue, 1.0, again=False) == "newcomer"
    assert turn(queue, 1.0, again=False) == "background"


@pytest.mark.parametrize(
    ("num_workers", "is_long", "is_newcomer_long", "wanted"),
    [
        (1, True, False, 1),
        (1, False, False, 0),  # it will be over soon
        (2, True, False, 0),  # a worker is free
        (1, True, True, 0),  # two that compute long have whole slices
    ],
)
def test_a_newcomer_interrupts_a_long_turn(num_workers, is_long, is_newcomer_long, wanted):
    queue, preempted = turns(num_workers)
    long = Guest("long", is_long=is_long)
    queue.put(long)
    assert queue.get() is long
    newcomer = Guest("newcomer", is_long=is_newcomer_long)
    queue.put(newcomer)
    assert len(preempted) == wanted
    assert queue.is_urgent() == bool(wanted)
    queue.release(long)
    assert queue.get() is newcomer
    queue.release(newcomer)


def test_closing_ends_the_workers_behind_the_guests_that_wait():
    queue, _ = turns(2)
    queue.put(Guest("last"))
    queue.close()
    assert turn(queue, 1.0, again=False) == "last"
    assert queue.get() is None
    assert queue.get() is None


@pytest.fixture
def unsliced(monkeypatch):
    """A host of one worker that cuts no turn by itself for as long as the tests take."""
    monkeypatch.setattr(ticker.Ticker.__init__, "__defaults__", (600.0,))
    host = WasmHost("fiber")
    yield host
    host.close()


def test_a_spinner_is_interrupted_for_a_guest_that_wakes(unsliced):
    """Nothing else would end the spinner's turn: its slice is ten minutes long."""
    misbehave = unsliced.load(GUESTS_C / "misbehave.wasm", "misbehave")
    waiting = []
    for _ in range(10):
        handlers = FakeHandlers()
        handlers.issued.add(1)
        waiting.append(Watched(unsliced, misbehave, "await 1", handlers))
    assert not any(w.has_ended(0.01) for w in waiting)
    spinner = Watched(unsliced, misbehave, "spin")
    while spinner.guest._burst_s <= fibers.LONG_S:  # from here it is long in the moment when a turn of its begins, too
        time.sleep(0.005)
        spinner.guest._turns._preempt()
    for watched in waiting:
        watched.resolve(1)
        assert watched.value == '"ready"'
    spinner.guest.kill(Cancelled("enough"))
    while not spinner.has_ended(0.01):
        spinner.guest._turns._preempt()  # as the ticker would
    assert spinner.error.message == "enough"


def test_a_guest_of_higher_priority_keeps_others_waiting_and_not_for_ever():
    """The one that waits for its turn does not count as waiting for something: it is about to go on."""
    with_slices = WasmHost("fiber")
    try:
        misbehave = with_slices.load(GUESTS_C / "misbehave.wasm", "misbehave")
        handlers = FakeHandlers()
        handlers.issued.add(1)
        low = Watched(with_slices, misbehave, "await 1", handlers)
        while not low.guest.is_waiting:
            time.sleep(0.001)
        spinner = Watched(with_slices, misbehave, "spin", priority=5)
        while spinner.guest._burst_s <= fibers.LONG_S:
            time.sleep(0.005)
        began = time.monotonic()
        low.resolve(1)
        assert not low.guest.is_waiting
        assert low.value == '"ready"'
        assert time.monotonic() - began > 0.8 * OLDEST_FIRST_EVERY_S
        spinner.guest.kill(Cancelled("enough"))
        assert spinner.error.message == "enough"
    finally:
        with_slices.close()


def test_guests_that_are_held_back_begin_one_by_one_are_killed_at_once_and_end_with_the_host():
    short = [True]
    host = WasmHost("fiber", is_short=lambda tenant, priority: short[0])
    try:
        program = host.load(GUESTS_C / "misbehave.wasm", "misbehave")
        turns = host._executor._turns
        guests = [Watched(host, program, "await 1", FakeHandlers()) for _ in range(10)]
        until(lambda: turns.num_held == 9)  # one has begun
        guests[-1].guest.kill(Cancelled("no more"))
        assert guests[-1].has_ended(1.0)
        until(lambda: turns.num_held < 8, BEGIN_EVERY_S * 4)
        short[0] = False
        until(lambda: turns.num_held == 0)
        short[0] = True
        guests += [Watched(host, program, "await 1", FakeHandlers()) for _ in range(10)]
        until(lambda: turns.num_held >= 8)
    finally:
        host.close()
    assert all(one.has_ended(1.0) for one in guests)


def until(is_so, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)
