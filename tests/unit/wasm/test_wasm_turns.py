"""The order of turns: who has computed least comes first, and interrupts who has computed long."""

from __future__ import annotations

import random
import time

import pytest
from wasm_fakes import GUESTS_C, FakeHandlers, Watched

from pieray.errors import Cancelled
from pieray.wasm import fibers, timers
from pieray.wasm.host import WasmHost
from pieray.wasm.turns import TurnQueue


class Guest:
    def __init__(
        self, name: str, tenant: str = "", is_long: bool = False, is_background: bool = False
    ) -> None:
        self.name, self.tenant, self.is_long, self.is_background = name, tenant, is_long, is_background
        self.served = 0.0


def turns(num_workers: int = 1) -> tuple[TurnQueue[Guest], list[int]]:
    preempted: list[int] = []
    return TurnQueue(num_workers, lambda: preempted.append(1)), preempted


def turn(queue: TurnQueue[Guest], seconds: float, *, again: bool = True) -> str:
    """The next guest computes for so long."""
    guest = queue.get()
    assert guest is not None
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
        turn(queue, 1.0)
    queue.put(Guest("new"))
    order = [turn(queue, 1.0) for _ in range(20)]
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


def test_the_background_has_what_nobody_wants_and_is_interrupted_for_anybody():
    queue, preempted = turns()
    background = Guest("background", is_long=True, is_background=True)
    queue.put(background)
    queue.put(Guest("spinner"))
    assert [turn(queue, 5.0) for _ in range(3)] == ["spinner"] * 3
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
    monkeypatch.setattr(timers.Ticker.__init__, "__defaults__", (600.0,))
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
