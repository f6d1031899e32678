"""Sampler chains: what a guest may describe, and that a draw keeps the chain that it was asked with."""

from __future__ import annotations

import math

import pytest
from arrays import NONE, f32, u32
from fakes import NUMBER, VOCAB, Bench

from pieray.config import Limits
from pieray.errors import BadHandle, InvalidRequest, QuotaExceeded
from pieray.host.handlers.samplers import MAX_BIAS
from pieray.messages import Sample, Sampler

INF, NAN = math.inf, math.nan


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.outbox.leases.granted(range(100, 120))
    return bench


def make(bench: Bench) -> int:
    return bench.handlers.samplers.create(0.5, 3, 0.75, 0.25, 0.5, 2**64 - 1)


def a_pass(bench: Bench) -> int:
    handlers = bench.handlers
    return handlers.forward.forward(handlers.queues.create(""), handlers.kv.alloc(1), 0, u32(1, 2), NONE, NONE)


def test_a_draw_travels_with_the_chain_as_it_was(bench: Bench) -> None:
    handlers = bench.handlers
    sampler, pass_ = make(bench), a_pass(bench)
    handlers.samplers.bias(sampler, u32(7, 9), f32(-INF, 2.5))
    first = handlers.forward.sample_with(pass_, 1, sampler)
    handlers.samplers.allow(sampler, u32(*[1 << 31] * 8))
    handlers.samplers.bias(sampler, NONE, f32())
    second = handlers.forward.sample_with(pass_, 0, sampler)
    handlers.samplers.free(sampler)
    greedy = handlers.forward.sample_with(pass_, 0, 0)
    handlers.tickets.flush()
    (sent,) = bench.forwards()
    numbers = [0.5, 3, 0.75, 0.25, 0.5, 2**64 - 1]
    bias = [u32(7, 9).tobytes(), f32(-INF, 2.5).tobytes()]
    assert sent.outputs == [
        Sample(1, Sampler(*numbers, *bias), NUMBER << 32 | first),
        Sample(0, Sampler(*numbers, b"", b"", b"\0\0\0\x80" * 8), NUMBER << 32 | second),
        Sample(0, Sampler(), NUMBER << 32 | greedy),
    ]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda h, s, p: h.samplers.create(NAN, 0, 1, 0, 1, 0), InvalidRequest, "temperature.*nan"),
        (lambda h, s, p: h.samplers.create(INF, 0, 1, 0, 1, 0), InvalidRequest, "temperature.*inf"),
        (lambda h, s, p: h.samplers.create(1, 0, 1.5, 0, 1, 0), InvalidRequest, "top-p.*1.5"),
        (lambda h, s, p: h.samplers.create(1, 0, 1, -1, 1, 0), InvalidRequest, "min-p.*-1"),
        (lambda h, s, p: h.samplers.create(1, 0, 1, 0, NAN, 0), InvalidRequest, "typical-p.*nan"),
        (lambda h, s, p: h.samplers.create(1, 0, 1, 0, 2, 0), InvalidRequest, "typical-p.*2"),
        (lambda h, s, p: h.samplers.bias(s, u32(1), f32()), InvalidRequest, "1 tokens, 0 values"),
        (lambda h, s, p: h.samplers.bias(s, u32(VOCAB), f32(1)), InvalidRequest, "below 256; given 256"),
        (lambda h, s, p: h.samplers.bias(s, u32(1, 1), f32(1, 2)), InvalidRequest, "twice"),
        (lambda h, s, p: h.samplers.bias(s, u32(1), f32(NAN)), InvalidRequest, "NaN"),
        (lambda h, s, p: h.samplers.bias(s, u32(1), f32(INF)), InvalidRequest, "inf"),
        (
            lambda h, s, p: h.samplers.bias(s, u32(*range(MAX_BIAS + 1)), f32(*range(MAX_BIAS + 1))),
            InvalidRequest,
            "at most 4096",
        ),
        (lambda h, s, p: h.samplers.allow(s, u32(1)), InvalidRequest, "takes 8 words, or none; given 1"),
        (lambda h, s, p: h.samplers.bias(99, u32(1), f32(1)), BadHandle, "sampler 99"),
        (lambda h, s, p: h.samplers.allow(0, NONE), BadHandle, "sampler 0"),
        (lambda h, s, p: h.samplers.free(99), BadHandle, "sampler 99"),
        (lambda h, s, p: (h.samplers.free(s), h.forward.sample_with(p, 0, s)), BadHandle, "sampler 1"),
        (lambda h, s, p: h.forward.sample_with(p, 0, 99), BadHandle, "sampler 99"),
        (lambda h, s, p: h.forward.sample_with(p, 2, s), InvalidRequest, "below 2; given 2"),
        (lambda h, s, p: h.forward.sample_with(99, 0, s), BadHandle, "pass 99"),
    ],
)
def test_bad_chains_are_refused(bench: Bench, call, error, text) -> None:  # type: ignore[no-untyped-def]
    sampler, pass_ = make(bench), a_pass(bench)
    num_tickets = len(bench.tickets)
    with pytest.raises(error, match=text):
        call(bench.handlers, sampler, pass_)
    assert len(bench.tickets) == num_tickets


def test_samplers_and_what_they_carry_are_bounded() -> None:
    bench = Bench(Limits(plans=1, message_bytes=3 * VOCAB // 8))
    bench.outbox.leases.granted([1])
    sampler = make(bench)
    with pytest.raises(QuotaExceeded, match="plans: the limit is 1 samplers"):
        make(bench)
    bench.handlers.samplers.allow(sampler, u32(*[1] * 8))
    pass_ = a_pass(bench)
    for _ in range(3):
        bench.handlers.forward.sample_with(pass_, 0, sampler)
    with pytest.raises(QuotaExceeded, match="message_bytes: the limit is 96"):
        bench.handlers.forward.sample_with(pass_, 0, sampler)
