"""Handlers that give a Future: their guest is parked, the others go on; its end cancels the work."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future

import pytest
from wasm_fakes import FakeHandlers, Watched

from pieray.config import Limits
from pieray.errors import Cancelled, InvalidRequest, PierayError, QuotaExceeded
from pieray.wasm.parks import Answer

WAIT_S = 20.0
HELLO = '{"prompt": "hello", "max_tokens": 2}'


class Deferring(FakeHandlers):
    """`tokenize` is a Future that the test completes."""

    def __init__(self, reply: str = "ok") -> None:
        super().__init__(reply)
        self.future: Future[Answer] = Future()
        self.is_asked = threading.Event()

    def model_tokenize(self, model: str, text: str) -> Future[Answer]:
        self.is_asked.set()
        return self.future


def asked(host, completion, **kwargs) -> Watched:
    watched = Watched(host, completion, HELLO, Deferring(), **kwargs)
    assert watched.handlers.is_asked.wait(WAIT_S)
    return watched


def complete(watched: Watched) -> str | None:
    """Answer the guest's commands until it has ended."""
    while not watched.has_ended(0.005):
        watched.handlers.resolve_staged()
        watched.guest.unpark()
    return watched.value


def test_the_guest_waits_and_its_neighbours_do_not(host, completion, misbehave):
    watched = asked(host, completion)
    assert Watched(host, misbehave, "echo neighbour").value == "neighbour"
    watched.guest.unpark()  # for nothing: it goes on waiting
    assert not watched.has_ended(0.02)
    watched.handlers.future.set_result(Answer([104, 105], 0.25))
    assert json.loads(complete(watched) or "")["text"] == "ok"
    forward = next(args for name, args in watched.handlers.calls if name == "forward")
    assert forward[3].tolist() == [104, 105]
    assert watched.outcome().cpu_time_s >= 0.25


def test_one_that_is_done_already_parks_nobody(host, completion):
    handlers = Deferring()
    handlers.future.set_result(Answer([104]))
    assert json.loads(complete(Watched(host, completion, HELLO, handlers)) or "")["num_tokens"] == 2


@pytest.mark.parametrize(
    ("failure", "wanted"), [(InvalidRequest("no such text"), InvalidRequest), (RuntimeError("a fault"), PierayError)]
)
def test_a_failure_is_the_calls_error(host, completion, failure, wanted):
    watched = asked(host, completion)
    watched.handlers.future.set_exception(failure)
    assert type(watched.error) is wanted
    assert str(failure) in watched.error.message


def test_an_error_costs_its_cpu_time_too(host, completion):
    watched = asked(host, completion)
    watched.handlers.future.set_result(Answer(None, 0.5, InvalidRequest("bad")))
    assert isinstance(watched.error, InvalidRequest)
    assert watched.outcome().cpu_time_s >= 0.5


def test_work_elsewhere_counts_against_cpu_time(host, completion):
    watched = asked(host, completion, limits=Limits(cpu_time_s=1.0))
    watched.handlers.future.set_result(Answer([104], 1.5))
    assert isinstance(watched.error, QuotaExceeded)
    assert "cpu_time_s is 1" in watched.error.message


def test_a_guest_that_is_killed_takes_its_work_back(host, completion):
    watched = asked(host, completion)
    watched.guest.kill(Cancelled("enough"))
    assert watched.error.message == "enough"
    assert watched.handlers.future.cancelled()


def test_a_guest_that_is_killed_does_not_wait_for_work_that_has_begun(host, completion):
    watched = asked(host, completion)
    assert watched.handlers.future.set_running_or_notify_cancel()
    watched.guest.kill(Cancelled("enough"))
    assert watched.error.message == "enough"
    watched.handlers.future.set_result(Answer([104], 1.0))  # nobody wants it any more
