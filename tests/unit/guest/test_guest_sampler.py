"""Sampler chains of the SDK: what reaches the host, when a handle is made, and that none is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import fake_model as lm
import pytest
from fake_host import FakeHost

from inferlet import Context, InvalidRequest, Sampler, SamplerHandle, forward, greedy, kv, queue
from inferlet._running import run

PROMPT = "abc abc"


def generated(host: FakeHost, max_tokens: int = 12, **options: Any) -> list[int]:
    async def main() -> list[int]:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(max_tokens, stop_tokens=(), **options)
            await generation
            return generation.tokens

    tokens = run(main())
    host.assert_clean()
    return tokens


def test_a_greedy_generation_needs_no_handle_and_each_handle_is_given_back(host: FakeHost) -> None:
    generated(host)
    assert "samplers_create" not in host.calls
    plain = generated(host, temperature=1.0, top_k=5, seed=3)
    host.calls.clear()
    assert generated(host, temperature=1.0, top_k=5, seed=3, typical_p=0.9) == plain  # the fake ignores typical-p
    assert host.calls.count("samplers_create") == host.calls.count("samplers_free") > 0


def test_banned_tokens_do_not_come_and_a_bias_alone_is_greedy(host: FakeHost) -> None:
    plain = generated(host)
    banned = lm.detokenize([plain[0]], skip_special=False)
    said = generated(host, logit_bias={banned: -math.inf})
    assert plain[0] not in said
    digest = lm.chain_of(lm.tokenize(PROMPT))
    assert said[0] == next(token for token, _ in lm.distribution(digest) if token != plain[0])
    assert generated(host, logit_bias={97: 50.0}) == [97] * 12


def test_only_allowed_tokens_come(host: FakeHost) -> None:
    sampler = Sampler(2.0, seed=1, allowed=["a", 98, "c"])
    assert set(generated(host, 40, sampler=sampler)) == {97, 98, 99}


def test_a_pass_keeps_the_chain_that_it_was_asked_with(host: FakeHost) -> None:
    async def main() -> list[int]:
        line, pages = queue.create(), kv.alloc(1)
        run_ = forward.forward(line, pages, 0, [97, 98])
        asked = [run_.sample(sampler=Sampler(0.0, allowed=[99])), run_.sample(sampler=greedy()), run_.sample()]
        with Sampler(0.0, allowed=[100]).handle() as made:
            asked.append(run_.sample(row=0, sampler=made))
        kv.free(pages)
        return [(await one)[0] for one in asked]

    first, second, third, fourth = run(main())
    assert (first, fourth) == (99, 100)
    assert second == third
    assert not host.samplers


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Sampler(typical_p=1.5), "typical_p is from 0.0 to 1.0; given 1.5"),
        (lambda: Sampler(logit_bias={5: math.nan}), "below infinity; given nan for 5"),
        (lambda: Sampler(logit_bias={5: math.inf}), "below infinity"),
        (lambda: Sampler(logit_bias={5: "x"}), "a logit bias is a number"),  # type: ignore[dict-item]
        (lambda: Sampler(logit_bias={"ab": 1.0}).handle(), "'ab' is 2 tokens"),
        (lambda: Sampler(logit_bias={-1: 1.0}).handle(), "token id"),
        (lambda: Sampler(allowed=[lm.VOCABULARY]).handle(), "token ids are below"),
        (lambda: Context(PROMPT).generate(sampler=greedy(), typical_p=0.5), "either sampler or typical_p"),
    ],
)
def test_bad_chains_are_named_and_leave_no_handle(host: FakeHost, make: Callable[[], object], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        make()
    assert not host.samplers


def test_a_handle_closes_once(host: FakeHost) -> None:
    handle = SamplerHandle(Sampler(typical_p=0.5))
    handle.close()
    handle.close()
    assert host.calls.count("samplers_free") == 1
    assert hash(Sampler()) == hash(Sampler())
