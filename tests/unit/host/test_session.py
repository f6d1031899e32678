"""The event log, limits and what is kept of ended inferlets."""

from __future__ import annotations

from typing import Any

import pytest

from pieray.config import Limits
from pieray.errors import ConfigError, InvalidRequest, QuotaExceeded
from pieray.host.session.session import BACKLOG_BYTES, EVENT_BYTES, FREE_EVENTS, EventLog
from pieray.messages import Event
from pieray.programs.limits import limits_within


class Sink:
    """A client's end that records."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, events: list[Event]) -> None:
        self.numbers.extend(e.number for e in events)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"pages": 101}, "limits.pages: this engine allows at most 100; given 101"),
        ({"pages": float("inf")}, "limits"),
        ({"wall_time_s": float("inf")}, "limits.wall_time_s: this engine allows at most 600.0; given inf"),
        ({"wall_time_s": float("nan")}, "wall_time_s"),
        ({"memory_bytes": -1}, "limits.memory_bytes is at least 0; given -1"),
        ({"tickets": 10**40}, "limits.tickets: this engine allows at most 4096"),
        ({"page": 1}, "did you mean limits.pages"),
        ({"pages": None}, "limits.pages is int; given None"),
        ({7: 1}, "limits are numbers by name"),
        (["pages"], "limits are numbers by name"),
    ],
)
def test_a_client_cannot_have_more_than_the_engine_allows(asked: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        limits_within(Limits(pages=100), asked)


def test_a_client_may_ask_for_less_and_for_nothing() -> None:
    assert limits_within(Limits(pages=100), {"pages": 7, "log-bytes": 0}) == Limits(pages=7, log_bytes=0)
    assert limits_within(Limits(pages=100), {}) == Limits(pages=100)
    assert limits_within(Limits(wall_time_s=float("inf")), {"wall_time_s": 1e9}).wall_time_s == 1e9


def test_empty_messages_and_lines_are_limited_too() -> None:
    log = EventLog("it", Limits(output_bytes=10 * EVENT_BYTES, log_bytes=5 * EVENT_BYTES))
    for _ in range(FREE_EVENTS + 10):
        log.send("")
    with pytest.raises(QuotaExceeded, match="output_bytes: the limit is 640"):
        log.send("")
    for _ in range(FREE_EVENTS + 5):
        log.log("info", "")
    with pytest.raises(QuotaExceeded, match="log_bytes: the limit is 320"):
        log.log("info", "")


def test_a_late_client_gets_a_long_story_in_parts() -> None:
    log = EventLog("it", Limits())
    for _ in range(10):
        log.send("x" * (BACKLOG_BYTES // 4))
    sink = Sink()
    num_asked = 0
    while not log.subscribe(len(sink.numbers), sink):
        num_asked += 1
        assert len(sink.numbers) <= 4 * num_asked
    assert num_asked >= 2
    log.end("result", "1")
    assert sink.numbers == list(range(11))


def test_who_subscribes_twice_gets_the_past_twice_and_the_future_once() -> None:
    log, sink = EventLog("it", Limits()), Sink()
    log.send("a")
    log.subscribe(0, sink)
    log.subscribe(0, sink)
    log.send("b")
    assert sink.numbers == [0, 0, 1]
    with pytest.raises(InvalidRequest, match="from 0 to 2; given 3"):
        log.subscribe(3, sink)


def test_a_story_that_has_ended_holds_on_to_no_client() -> None:
    log, sink = EventLog("it", Limits()), Sink()
    log.subscribe(0, sink)
    log.end("result", "1")
    log.subscribe(1, Sink())
    assert log._sinks == []
    assert sink.numbers == [0]


def test_the_last_log_lines_are_few_and_short() -> None:
    log = EventLog("i", Limits())
    assert log.last_logs() == []
    for i in range(30):
        log.log("info", f"{i} " + "x" * 1000)
        log.send("between")
    lines = log.last_logs()
    assert [line.split()[1] for line in lines] == [str(i) for i in range(20, 30)]
    assert {len(line) for line in lines} == {500}
