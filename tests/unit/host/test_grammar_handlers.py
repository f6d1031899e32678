"""The handlers of `grammar` and `chat.parse` over a fake device, with the real compiler."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fakes import VOCAB, Bench, byte_tokenizer

from pieray.config import Limits
from pieray.errors import BadHandle, InvalidRequest, PierayError, QuotaExceeded
from pieray.host.text.grammars import NUM_THREADS, GrammarService


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(Limits(plans=3, grammar_bytes=1000, grammar_time_s=5.0))
    yield made
    made.services.close()


def compile_(bench: Bench, text: str, kind: str = "regex") -> int:
    ticket = bench.handlers.grammar.compile("", kind, text)
    deadline = time.monotonic() + 60
    while not bench.handlers.tickets.ready(np.array([ticket], np.uint32)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return int(bench.handlers.tickets.take_tokens(ticket)[0])


def u32(text: str) -> np.ndarray:
    """Ids of the fake's byte tokens."""
    return np.array(byte_tokenizer().encode(text), np.uint32)


def allowed(bench: Bench, matcher: int) -> set[int]:
    words = bench.handlers.grammar.mask(matcher)
    assert words.dtype == np.dtype("<u4")
    assert len(words) == -(-VOCAB // 32)
    return {int(i) for i in np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))}


def test_a_matcher_from_ticket_to_free(bench: Bench) -> None:
    handlers = bench.handlers
    matcher = compile_(bench, "[0-9]{2}")
    assert allowed(bench, matcher) == set(u32("0123456789").tolist())
    fork = handlers.grammar.fork(matcher)
    assert handlers.grammar.accept(fork, u32("12x")) == 2
    assert handlers.grammar.is_complete(fork)
    assert not handlers.grammar.is_complete(matcher)
    assert allowed(bench, fork) == {0}, "the stop token"
    handlers.grammar.rollback(fork, 2)
    assert allowed(bench, fork) == allowed(bench, matcher)
    handlers.grammar.free(fork)
    with pytest.raises(BadHandle, match=f"matcher {fork} is not open"):
        handlers.grammar.mask(fork)
    for call in (handlers.grammar.fork, handlers.grammar.forced, handlers.grammar.is_complete, handlers.grammar.free):
        with pytest.raises(BadHandle):
            call(999)


def test_a_mask_is_what_samplers_allow_takes(bench: Bench) -> None:
    matcher = compile_(bench, "a|b")
    sampler = bench.handlers.samplers.create(0.0, 0, 1.0, 0.0, 1.0, 0)
    bench.handlers.samplers.allow(sampler, bench.handlers.grammar.mask(matcher))
    kept = np.frombuffer(bench.parts.tables.samplers.get(sampler).allowed, np.uint8)
    assert set(np.flatnonzero(np.unpackbits(kept, bitorder="little"))) == set(u32("ab").tolist())


def test_forced_tokens(bench: Bench) -> None:
    assert list(bench.handlers.grammar.forced(compile_(bench, "hello"))) == u32("hello").tolist()


def test_a_second_compile_comes_from_the_cache_at_once(bench: Bench) -> None:
    compile_(bench, "[a-z]+")
    ticket = bench.handlers.grammar.compile("", "regex", "[a-z]+")
    assert bench.handlers.tickets.ready(np.array([ticket], np.uint32)) == [ticket]
    found = bench.parts.tables.matchers.values()
    bench.handlers.tickets.take_tokens(ticket)
    assert found[0].grammar is found[1].grammar


def test_faults_and_limits_are_told(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="at character 1: unclosed group"):
        compile_(bench, "(a")
    with pytest.raises(QuotaExceeded, match="grammar_bytes: the limit is 1000; given 1002"):
        bench.handlers.grammar.compile("", "regex", "é" * 501)
    with pytest.raises(PierayError, match="no model is named 'x'"):
        bench.handlers.grammar.compile("x", "regex", "a")
    matcher = compile_(bench, "a*")
    with pytest.raises(InvalidRequest, match="at most 4096 tokens in one call; given 4097"):
        bench.handlers.grammar.accept(matcher, np.zeros(4097, np.uint32))
    with pytest.raises(InvalidRequest, match="at most 1024 tokens long.*given 1025 more"):
        bench.handlers.grammar.accept(matcher, np.zeros(1025, np.uint32))
    with pytest.raises(InvalidRequest, match="from 0 to 0 tokens"):
        bench.handlers.grammar.rollback(matcher, 1)


def test_matchers_count_against_plans_also_while_they_are_compiled(bench: Bench) -> None:
    tickets = [bench.handlers.grammar.compile("", "regex", f"slow{i}") for i in range(3)]
    with pytest.raises(QuotaExceeded, match="plans: the limit is 3 matchers open"):
        bench.handlers.grammar.compile("", "regex", "one more")
    bench.handlers.tickets.cancel(np.array(tickets, np.uint32))
    deadline = time.monotonic() + 30
    while bench.handlers.grammar._num_compiling or len(bench.parts.tables.matchers):
        assert time.monotonic() < deadline, "what is cancelled gives its place back"
        time.sleep(0.01)
    matchers = [compile_(bench, "a")]
    matchers += [bench.handlers.grammar.fork(matchers[0]) for _ in range(2)]
    with pytest.raises(QuotaExceeded, match="plans"):
        bench.handlers.grammar.fork(matchers[0])


def test_a_guest_that_ends_takes_back_what_waits(bench: Bench) -> None:
    for i in range(3):
        bench.handlers.grammar.compile("", "regex", f"x{i}")
    bench.parts.close()
    assert bench.services.grammars._pool.num_waiting(bench.parts.identity.launch.tenant) == 0


def test_closing_fails_what_waits(bench: Bench) -> None:
    tickets = [bench.handlers.grammar.compile("", "regex", f"y{i}") for i in range(3)]
    bench.services.close()
    deadline = time.monotonic() + 30
    while len(bench.handlers.tickets.ready(np.array(tickets, np.uint32))) < 3:
        assert time.monotonic() < deadline, "nobody waits for ever"
        time.sleep(0.01)
    late = bench.handlers.grammar.compile("", "regex", "late")
    with pytest.raises(PierayError, match="shutting down"):
        bench.handlers.tickets.take_tokens(late)


def test_parse_answers_json_and_bounds_its_text(bench: Bench) -> None:
    reply = json.loads(bench.handlers.chat.parse("", "plain", False))
    assert reply == {"content": "plain", "reasoning": "", "tool_calls": [], "is_complete": True}
    with pytest.raises(QuotaExceeded, match="tokenize_bytes"):
        bench.handlers.chat.parse("", "x" * (bench.limits.tokenize_bytes + 1), False)


def test_tenants_take_turns_and_none_has_all_threads() -> None:
    """Another's grammar is compiled while all that the greedy one may have at one time is under way."""
    service = GrammarService()
    order: list[str] = []
    served = Bench().parts.models.get("")
    gate, began = threading.Event(), threading.Semaphore(0)
    compiler = service._compiler(served)

    def compile_in_turn(kind: str, text: str, tenant: str, *, time_s: float) -> PierayError:
        began.release()
        assert tenant != "greedy" or gate.wait(10)
        return PierayError(text)

    compiler.compile = compile_in_turn  # type: ignore[assignment,method-assign]
    done = threading.Semaphore(0)

    def ask(tenant: str, text: str) -> None:
        service.compile(
            served, "regex", text, 1.0, lambda _: (order.append(tenant), done.release()), tenant=tenant, owner=tenant
        )

    for i in range(10):
        ask("greedy", f"g{i}")
    for _ in range(NUM_THREADS - 1):
        assert began.acquire(timeout=10)
    for i in range(3):
        ask("modest", f"m{i}")
    for _ in range(3):
        assert done.acquire(timeout=10)
    assert order == ["modest"] * 3
    gate.set()
    for _ in range(10):
        assert done.acquire(timeout=10)
    service.close()
