"""`tickets.wait` and WASI sleep: what blocks, what wakes, and that no wake-up is lost."""

from __future__ import annotations

import threading
import time

import pytest
from wasm_fakes import FakeHandlers, Watched

from pieray.errors import BadHandle, Evicted


def eventually(condition, within_s=30.0):
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.002)


def test_a_ready_ticket_does_not_park(host, misbehave):
    handlers = FakeHandlers()
    handlers.resolve(7)
    watched = Watched(host, misbehave, "await 7", handlers)
    assert watched.value == '"ready"'
    assert handlers.num_flushes == 1


def test_unpark_wakes_a_parked_guest(host, misbehave):
    handlers = FakeHandlers()
    handlers.issued.add(7)
    watched = Watched(host, misbehave, "await 7", handlers)
    assert not watched.has_ended(0.05)
    watched.resolve(7)
    assert watched.value == '"ready"'
    assert handlers.num_flushes == 1


def test_a_spurious_unpark_changes_nothing(host, misbehave):
    handlers = FakeHandlers()
    handlers.issued.add(7)
    watched = Watched(host, misbehave, "await 7", handlers)
    for _ in range(20):
        watched.guest.unpark()
        time.sleep(0.001)
    assert not watched.has_ended(0.02)
    watched.resolve(7)
    assert watched.value == '"ready"'
    watched.guest.unpark()


def test_an_unknown_ticket_is_a_bad_handle(host, misbehave):
    error = Watched(host, misbehave, "await 99").error
    assert isinstance(error, BadHandle)
    assert error.message.startswith("no ticket 99")


def test_an_error_of_tickets_ready_after_a_park_reaches_the_guest(host, misbehave):
    handlers = FakeHandlers()
    handlers.issued.add(7)
    watched = Watched(host, misbehave, "await 7", handlers)
    assert not watched.has_ended(0.02)

    def ready(_tickets):
        raise Evicted("gone")

    handlers.tickets_ready = ready
    watched.guest.unpark()
    assert isinstance(watched.error, Evicted)
    assert watched.error.message.startswith("gone")


def test_without_tickets_wait_sleeps(host, misbehave):
    outcome = Watched(host, misbehave, "sleep 60").outcome()
    assert outcome.value == '"slept"'
    assert 0.06 <= outcome.wall_time_s < 5
    assert outcome.cpu_time_s < 0.03


def test_timeout_zero_does_not_block(host, misbehave):
    assert Watched(host, misbehave, "sleep 0").outcome().wall_time_s < 5


def test_sleepers_share_a_thread(host, misbehave):
    began = time.monotonic()
    sleepers = [Watched(host, misbehave, "sleep 200") for _ in range(50)]
    assert [s.value for s in sleepers] == ['"slept"'] * 50
    assert time.monotonic() - began < 6


def test_no_wake_up_is_lost(host, misbehave):
    """A thread answers each wait the moment it is asked about, most often between the check and the park."""
    rounds = 3000
    asked = threading.Semaphore(0)

    class Racing(FakeHandlers):
        def tickets_ready(self, tickets):
            ticket = int(tickets[0])
            if ticket in self.results:
                return [ticket]
            self.wanted = ticket
            asked.release()
            return []

    handlers = Racing()
    watched = Watched(host, misbehave, f"wait {rounds}", handlers)
    while not watched.guest.is_done:
        if asked.acquire(timeout=0.2):
            handlers.results[handlers.wanted] = None
            watched.guest.unpark()
    assert watched.value == '"done"'
    assert handlers.num_flushes == rounds


def test_on_batch_end_comes_before_the_threads_rest(fresh_host):
    from wasm_fakes import GUESTS_C

    program = fresh_host.load(GUESTS_C / "misbehave.wasm", "misbehave")
    handlers = FakeHandlers()
    handlers.issued.add(7)
    seen = []
    fresh_host.on_batch_end = lambda: seen.append(handlers.num_flushes)
    watched = Watched(fresh_host, program, "await 7", handlers)
    eventually(lambda: 1 in seen)
    watched.resolve(7)
    assert watched.value == '"ready"'


class Panic(BaseException):
    """As that of native code: no Exception."""


@pytest.mark.parametrize("failure", [RuntimeError, Panic])
def test_on_batch_end_may_fail(fresh_host, failure):
    from wasm_fakes import GUESTS_C

    program = fresh_host.load(GUESTS_C / "misbehave.wasm", "misbehave")

    def fail():
        raise failure("no socket")

    fresh_host.on_batch_end = fail
    assert Watched(fresh_host, program, "sleep 5").value == '"slept"'


@pytest.mark.parametrize("spinners", [2])
def test_spinning_guests_do_not_starve_others(host, misbehave, spinners):
    from pieray.config import Limits
    from pieray.errors import Cancelled

    busy = [Watched(host, misbehave, "spin", limits=Limits()) for _ in range(spinners)]
    began = time.monotonic()
    assert [Watched(host, misbehave, "sleep 20").value for _ in range(3)] == ['"slept"'] * 3
    assert time.monotonic() - began < 6
    for watched in busy:
        watched.guest.kill(Cancelled("enough"))
    assert [w.error.code for w in busy] == ["cancelled"] * spinners
