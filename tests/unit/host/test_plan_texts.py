"""Texts of plans: those that go straight to the client are those that a guest would have sent; those that it reads are
whole in one call."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from plan_bench import PlanBench, u32

from pieray.config import Limits
from pieray.errors import InvalidRequest, OutOfPages, PierayError, QuotaExceeded
from pieray.wasm.parks import Later
from tests.support.digest_runner import reference

PROMPT = [65, 66, 67, 68, 69]
HOT = (1.0, 0, 1.0, 0.0, 1.0)


def begun(bench: PlanBench, max_tokens: int = 60, seed: int = 0, stops: tuple[str, ...] = ()) -> tuple[int, int]:
    """A plan that runs, and a text stream."""
    sampler = bench.handlers.samplers.create(*HOT, seed) if seed else 0
    plan = bench.plan(PROMPT, max_tokens, sampler=sampler)
    stream = bench.handlers.model.stream_open("", True, np.array([], np.uint32))
    if stops:
        bench.handlers.model.stream_stop(stream, list(stops))
    bench.handlers.plans.start(plan)
    return plan, stream


def text_of(tokens: list[int], stops: tuple[str, ...] = ()) -> str:
    """As a guest makes it that pushes them one by one."""
    bench = PlanBench()
    stream = bench.handlers.model.stream_open("", True, np.array([], np.uint32))
    bench.handlers.model.stream_stop(stream, list(stops))
    return "".join([bench.handlers.model.stream_push(stream, u32(token)) for token in tokens])


def sent(bench: PlanBench) -> list[str]:
    return [text for kind, text in bench.events() if kind == "text"]


def stream_out(bench: PlanBench, plan: int, stream: int) -> str:
    ticket = bench.handlers.plans.stream_text(plan, stream)
    for _ in range(500):
        if bench.handlers.tickets.ready(u32(ticket)):
            return bench.handlers.tickets.take_text(ticket)
        bench.turn()
    raise AssertionError("the stream did not end")


@pytest.mark.parametrize("seed", range(5))
def test_what_goes_out_is_the_text_of_what_is_drawn(seed):
    bench = PlanBench()
    plan, stream = begun(bench, seed=seed)
    expected = reference(PROMPT, 60, seed, 1.0 if seed else 0.0)
    text = stream_out(bench, plan, stream)
    assert text == "".join(sent(bench)) == text_of(expected)
    assert bench.handlers.plans.read(plan, 0, 0, 0) == (expected, [], [])
    assert bench.state_of(plan)["finish_reason"] == "length"
    bench.check()


def test_each_step_is_one_event_and_wakes_nobody():
    bench = PlanBench()
    plan, stream = begun(bench)
    ticket = bench.handlers.plans.stream_text(plan, stream)
    bench.turn()
    bench.tickets.has_news = False
    for count in range(2, 12):
        bench.turn()
        assert bench.state_of(plan)["num_tokens"] == count
        assert "".join(sent(bench)) == text_of(reference(PROMPT, count))
        assert not bench.tickets.has_news
    assert bench.handlers.tickets.ready(u32(ticket)) == []


@pytest.mark.parametrize("place", [0, 7, 31, 55])
@pytest.mark.parametrize("knows", [True, False])
def test_a_stop_text_is_cut_off_whether_the_batcher_knows_it_or_not(place, knows):
    expected = reference(PROMPT, 60)
    whole = text_of(expected)
    stop = whole[place : place + 4]
    bench = PlanBench()
    plan = bench.plan(PROMPT, 60)
    stream = bench.handlers.model.stream_open("", True, np.array([], np.uint32))
    bench.handlers.model.stream_stop(stream, ["never", stop])
    if knows:
        bench.handlers.plans.set_stop(plan, u32(), ["never", stop])
    bench.handlers.plans.start(plan)
    text = stream_out(bench, plan, stream)
    assert text == "".join(sent(bench)) == whole[: whole.find(stop)]
    tokens = bench.handlers.plans.read(plan, 0, 0, 0)[0]
    assert tokens == expected[: len(tokens)]
    assert stop in text_of(tokens)
    assert stop not in text_of(tokens[:-1])
    state = bench.state_of(plan)
    assert (state["state"], state["finish_reason"], state["stopped_by"]) == ("ended", "stop", stop)
    assert state["num_tokens"] == len(tokens)
    assert bench.handlers.model.stream_stopped(stream) == stop
    assert not bench.core.has_work
    bench.check()


def test_a_stop_text_is_met_across_two_plans_of_one_text():
    expected = reference(PROMPT, 60)
    whole = text_of(expected)
    stop = whole[28:33]
    bench = PlanBench()
    stream = bench.handlers.model.stream_open("", True, np.array([], np.uint32))
    bench.handlers.model.stream_stop(stream, [stop])
    pages = bench.handlers.kv.alloc(20)
    first = bench.plan(PROMPT, 30, pages=pages)
    bench.handlers.plans.start(first)
    out = stream_out(bench, first, stream)
    said = bench.handlers.plans.read(first, 0, 0, 0)[0]
    if not bench.handlers.model.stream_stopped(stream):
        second = bench.plan(said[-1:], 30, pages=pages, kv_len=len(PROMPT) + 29)
        bench.handlers.plans.start(second)
        out += stream_out(bench, second, stream)
    assert out == "".join(sent(bench)) == whole[: whole.find(stop)]


def test_a_stop_token_has_no_text():
    expected = reference(PROMPT, 60)
    bench = PlanBench()
    plan = bench.plan(PROMPT, 60)
    bench.handlers.plans.set_stop(plan, u32(expected[9]), [])
    stream = bench.handlers.model.stream_open("", False, np.array([], np.uint32))
    bench.handlers.plans.start(plan)
    place = expected.index(expected[9])
    assert stream_out(bench, plan, stream) == text_of(expected[:place])
    assert bench.handlers.plans.read(plan, 0, 0, 0)[0] == expected[: place + 1]


@pytest.mark.parametrize("way", ["pause", "cancel"])
def test_paused_or_cancelled_midway_it_has_sent_what_was_drawn(way):
    bench = PlanBench()
    plan, stream = begun(bench, 200)
    ticket = bench.handlers.plans.stream_text(plan, stream)
    for _ in range(12):
        bench.turn()
    stop = bench.handlers.plans.pause(plan) if way == "pause" else bench.handlers.plans.cancel(plan)
    bench.wait(stop)
    text = bench.handlers.tickets.take_text(ticket)
    said = bench.handlers.plans.read(plan, 0, 0, 0)[0]
    assert said == reference(PROMPT, len(said))
    assert text == "".join(sent(bench)) == text_of(said)
    assert bench.state_of(plan)["num_tokens"] == len(said) < 200
    if way == "pause":
        bench.handlers.plans.resume(plan)
        text += stream_out(bench, plan, stream)
        assert text == "".join(sent(bench)) == text_of(reference(PROMPT, 200))
    bench.check()


def test_what_was_drawn_before_and_not_read_goes_out_first():
    bench = PlanBench()
    plan, stream = begun(bench)
    for _ in range(9):
        bench.turn()
    bench.handlers.plans.read(plan, stream, 4, 0)
    stream_out(bench, plan, stream)
    assert "".join(sent(bench)) == text_of(reference(PROMPT, 60))[len(text_of(reference(PROMPT, 4))) :]


def test_a_client_that_comes_late_or_again_has_all_of_it_once():
    bench = PlanBench()
    plan, stream = begun(bench)
    ticket = bench.handlers.plans.stream_text(plan, stream)
    for _ in range(10):
        bench.turn()
    late: list = []
    assert bench.log.subscribe(0, late.extend)
    for _ in range(10):
        bench.turn()
    cursor = len(late)
    again: list = []
    assert bench.log.subscribe(cursor - 3, again.extend)
    bench.run()
    assert bench.handlers.tickets.take_text(ticket) == "".join(e.payload for e in late)
    assert [e.number for e in late] == list(range(len(late)))
    assert again == late[cursor - 3 :]


@pytest.mark.parametrize("limits", [{"output_bytes": 40}, {"message_bytes": 3}])
def test_limits_hold_as_for_send(limits):
    told = []
    for straight in (True, False):
        bench = PlanBench(limits=dataclasses.replace(Limits(), **limits))
        plan, stream = begun(bench)
        bench.handlers.plans.stream_text(plan, stream) if straight else None
        bench.run()
        if not straight:
            for text in bench.handlers.plans.read(plan, stream, 0, 0)[1]:
                try:
                    bench.handlers.session.send(text) if text else None
                except QuotaExceeded:
                    break
        told.append("".join(sent(bench)))
    assert told[0] == told[1] != ""


def test_a_limit_that_is_reached_ends_the_plan_with_its_error():
    bench = PlanBench(limits=dataclasses.replace(Limits(), output_bytes=20))
    plan, stream = begun(bench, 200)
    ticket = bench.handlers.plans.stream_text(plan, stream)
    bench.run()
    with pytest.raises(QuotaExceeded, match="output_bytes: the limit is 20"):
        bench.handlers.tickets.take_text(ticket)
    assert bench.state_of(plan)["state"] == "ended"
    assert bench.state_of(plan)["num_tokens"] < 40
    assert not bench.core.has_work
    bench.check()


class Panic(BaseException):
    """As pyo3 raises it."""


def test_a_tokenizer_that_panics_fails_that_plan_alone():
    bench = PlanBench()
    bad, stream = begun(bench)
    good = bench.plan(PROMPT, 60, queue=bench.handlers.queues.create(""))
    bench.handlers.plans.start(good)
    other = bench.handlers.model.stream_open("", True, np.array([], np.uint32))

    class Broken:
        def push(self, token: int) -> str:
            raise Panic("index out of bounds")

    bench.parts.tables.streams.get(stream)._decoder = Broken()
    ticket, kept = bench.handlers.plans.stream_text(bad, stream), bench.handlers.plans.stream_text(good, other)
    bench.run()
    with pytest.raises(PierayError, match="makes no text of token .*index out of bounds"):
        bench.handlers.tickets.take_text(ticket)
    assert bench.handlers.tickets.take_text(kept) == text_of(reference(PROMPT, 60))
    assert bench.state_of(bad)["state"] == "ended"
    bench.check()


def test_the_error_of_a_plan_is_that_of_its_stream():
    bench = PlanBench(num_pages=6)
    plan, stream = begun(bench)
    ticket = bench.handlers.plans.stream_text(plan, stream)
    bench.run()
    assert sent(bench)
    bench.outbox.leases.lease_failed(OutOfPages("no page in 9 s"))
    bench.run()
    with pytest.raises(OutOfPages):
        bench.handlers.tickets.take_text(ticket)


def test_a_stream_that_is_forgotten_sends_no_more():
    bench = PlanBench()
    plan, stream = begun(bench)
    ticket = bench.handlers.plans.stream_text(plan, stream)
    for _ in range(5):
        bench.turn()
    before = sent(bench)
    bench.handlers.tickets.cancel(u32(ticket))
    bench.run()
    assert sent(bench) == before
    assert bench.handlers.plans.read(plan, 0, 0, 0)[0] == reference(PROMPT, 60)


# --- reading ---------------------------------------------------------------------------------------


def test_one_read_has_all_that_was_drawn_since_the_last():
    bench = PlanBench()
    plan, stream = begun(bench)
    bench.handlers.plans.read(plan, stream, 0, 0)
    for _ in range(20):
        bench.turn()
    tokens, texts, scores = bench.handlers.plans.read(plan, stream, 0, 0)
    assert tokens == reference(PROMPT, len(tokens))
    assert len(tokens) == len(texts) == bench.state_of(plan)["num_tokens"]
    assert "".join(texts) == text_of(tokens)
    assert scores == []
    assert bench.handlers.plans.read(plan, stream, 0, 0) == ([], [], [])


def test_a_read_waits_for_the_next_token_and_for_the_end():
    bench = PlanBench()
    plan, stream = begun(bench, 3)
    found: list[int] = []
    while True:
        read = bench.handlers.plans.read(plan, stream, 2, -1)
        while isinstance(read, Later):
            assert read.deadline is None
            bench.tickets.has_news = False
            bench.turn()
            assert bench.tickets.has_news, "whoever waits is woken"
            found_now = read.look()
            read = found_now if found_now is not None else read
        if not read[0]:
            break
        found += read[0]
    assert found == reference(PROMPT, 3)


def test_a_read_gives_up_in_time():
    bench = PlanBench()
    plan, _ = begun(bench)
    waiting = bench.handlers.plans.read(plan, 0, 0, 50)
    assert isinstance(waiting, Later)
    assert waiting.deadline is not None
    assert waiting.give_up() == ([], [], [])


def test_a_watch_is_ready_while_there_is_something_to_read():
    bench = PlanBench()
    plan, _ = begun(bench, 4)
    watch = bench.handlers.plans.watch(plan)
    assert bench.handlers.plans.watch(plan) == watch
    while bench.state_of(plan)["state"] == "running":
        assert bench.handlers.tickets.ready(u32(watch)) == []
        bench.turn()
        if bench.state_of(plan)["num_tokens"]:
            assert bench.handlers.tickets.ready(u32(watch)) == [watch]
            bench.handlers.plans.read(plan, 0, 0, 0)
    assert bench.handlers.tickets.ready(u32(watch)) == [watch], "it has ended"
    bench.handlers.plans.close(plan)
    assert not bench.tickets.is_open(watch)


def test_bad_calls_are_named():
    bench = PlanBench()
    h = bench.handlers
    plan = bench.plan(PROMPT, 2000 // 4)
    stream = h.model.stream_open("", True, np.array([], np.uint32))
    for call in (
        lambda: h.plans.read(plan, 0, 0, 0),
        lambda: h.plans.watch(plan),
        lambda: h.plans.stream_text(plan, stream),
    ):
        with pytest.raises(InvalidRequest, match="the plan is not started"):
            call()
    with pytest.raises(PierayError, match="text stream 99 is not open"):
        h.plans.stream_text(plan, 99)
    with pytest.raises(InvalidRequest, match="at least 1 character each"):
        h.model.stream_stop(stream, [""])
    h.plans.start(plan)
    h.plans.stream_text(plan, stream)
    with pytest.raises(InvalidRequest, match="goes to the client already"):
        h.plans.stream_text(plan, stream)
