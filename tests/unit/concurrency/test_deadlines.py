"""Every timeout of the client's API is read in one way: passed, endless, huge, or no time at all."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from pieray.client.link import ActorLink
from pieray.client.process import Event, Process
from pieray.concurrency.deadlines import LONGEST_WAIT_S, Deadline, wait_s
from pieray.config import load
from pieray.errors import ConfigError, DeadlineExceeded, InvalidRequest, PeerLost
from pieray.messages import Attach, Completed, Message
from pieray.transport import Connection, serve

PASSED = [0, 0.0, -2, -1e-9, -1e10, -1e300, -math.inf, -(10**400)]
FAR = [1e10, 1e300, math.inf, None, 10**400, Fraction(10**12)]
NO_TIME = [math.nan, "5", True, [], 1j, Decimal(1)]


def shortly(value: object) -> str:
    return str(value)[:8]


class Actor:
    """Answers every request."""

    def __init__(self) -> None:
        self.asked: list[Message] = []

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        for message in messages:
            self.asked.append(message)
            conn.send([Completed(message.ticket, None)])  # type: ignore[attr-defined]

    def on_close(self, conn: Connection, error: PeerLost) -> None: ...


@pytest.fixture
def actor() -> Actor:
    return Actor()


@pytest.fixture
def process(actor: Actor) -> Iterator[Process]:
    door = serve(actor, peer_id="host", incarnation=1, token="t" * 64, kind="inproc")
    link = ActorLink(door.endpoint, peer_id="me", token="t" * 64, timeout_s=5, on_lost=lambda _: None)
    process = Process("it", "demo", link)
    link.attach(process)
    yield process
    link.close()
    door.close()


CALLS: dict[str, Callable[[Process, Any], object]] = {
    "send": lambda process, timeout: process.send("hello", timeout=timeout),
    "send_file": lambda process, timeout: process.send_file("name", b"data", timeout=timeout),
    "kill": lambda process, timeout: process.kill(timeout=timeout),
    "result": lambda process, timeout: process.result(timeout=timeout),
    "wait": lambda process, timeout: asyncio.run(process.wait(timeout=timeout)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("timeout", PASSED, ids=shortly)
def test_what_has_passed_is_a_deadline_and_nothing_is_sent(
    actor: Actor, process: Process, call: Callable[[Process, Any], object], timeout: Any
) -> None:
    with pytest.raises(DeadlineExceeded):
        call(process, timeout)
    assert [type(message) for message in actor.asked] == [Attach]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("timeout", NO_TIME)
def test_what_is_no_time_is_an_invalid_request(
    actor: Actor, process: Process, call: Callable[[Process, Any], object], timeout: Any
) -> None:
    with pytest.raises(InvalidRequest, match="timeout is a number of seconds"):
        call(process, timeout)
    assert [type(message) for message in actor.asked] == [Attach]


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("timeout", FAR, ids=shortly)
def test_what_is_far_away_waits_for_what_comes(
    process: Process, call: Callable[[Process, Any], object], timeout: Any
) -> None:
    ending = threading.Timer(0.05, lambda: process.add([Event("result", "1", 0)]))
    ending.start()
    assert call(process, timeout) in (None, 1)
    ending.join()


@pytest.mark.parametrize("timeout", PASSED, ids=shortly)
def test_what_is_there_is_given_although_the_time_has_passed(process: Process, timeout: Any) -> None:
    process.add([Event("result", "7", 0)])
    assert process.result(timeout=timeout) == asyncio.run(process.wait(timeout=timeout)) == 7


def test_a_deadline_is_told_as_it_was_given() -> None:
    with pytest.raises(DeadlineExceeded, match=r"^x has not answered within -2 s$"):
        Deadline(-2).check("x has not answered")


def test_one_wait_is_bounded() -> None:
    assert Deadline(math.inf).left_s() == Deadline(None).left_s() == wait_s(math.inf) == LONGEST_WAIT_S
    assert Deadline(-math.inf).left_s() == wait_s(-math.inf) == 0
    assert threading.Lock().acquire(timeout=Deadline(1e300).left_s())
    assert 0 < wait_s(time.monotonic() + 5) <= 5


@pytest.mark.parametrize("name", ["start_timeout_s", "model.cohort_wait_s"])
@pytest.mark.parametrize("value", [-1.0, -math.inf, math.nan])
def test_settings_that_are_no_times_are_refused(name: str, value: float) -> None:
    group, _, field = name.rpartition(".")
    with pytest.raises(ConfigError, match=name):
        load({group: {field: value}} if group else {field: value})
