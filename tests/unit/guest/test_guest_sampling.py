"""Samplers of a program's own: functions over logits, contexts beside the one that is generated, and many draws."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from fake_host import FakeHost

from inferlet import Context, Grammar, InvalidRequest, Sampler, sampling
from inferlet._running import run
from inferlet.tools import calculate

PROMPT = "abc abc"


def test_softmax_and_its_logarithm_survive_large_logits_and_minus_infinity() -> None:
    logits = [1000.0, 999.0, -math.inf]
    likely = sampling.softmax(logits)
    assert likely == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0.0])
    assert sampling.log_softmax(logits)[:2] == pytest.approx([math.log(p) for p in likely[:2]])
    assert sampling.log_softmax(logits)[2] == -math.inf
    assert sampling.softmax(logits, 2.0) == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5)), 0.0])
    assert sampling.entropy([0.5, 0.5, 0.0]) == pytest.approx(math.log(2))
    with pytest.raises(InvalidRequest, match="above 0 here"):
        sampling.softmax(logits, 0.0)


def test_a_draw_is_as_likely_as_its_weight_and_never_one_without() -> None:
    random = sampling.randoms(3)
    counts = Counter(sampling.draw([0.0, 1.0, 0.0, 3.0, 0.0], random) for _ in range(4000))
    assert set(counts) == {1, 3}
    assert counts[3] == pytest.approx(3000, abs=4 * math.sqrt(750))
    assert sampling.draw([1.0, 2.0], lambda: 1 - 2**-53) == 1
    with pytest.raises(InvalidRequest, match="no index has a weight"):
        sampling.draw([0.0, 0.0], random)
    assert sampling.keep([0.5, 0.3, 0.2], [0, 2]) == pytest.approx([5 / 7, 0.0, 2 / 7])


def test_noise_follows_from_its_key_alone() -> None:
    one, again, other = (sampling.noise(50, 7, *before) for before in ((1, 2), (1, 2), (12,)))
    assert one == again
    assert not set(one) & set(other)
    assert all(0 <= value < 1 for value in one)


@pytest.mark.parametrize(("text", "value"), [("12+7", 19), ("-(2+3)*4", -20), ("7//2", 3), ("7%4", 3), ("1/4", 0.25)])
def test_the_calculator_calculates(text: str, value: float) -> None:
    assert calculate(text) == value


@pytest.mark.parametrize("text", ["2**99999", "1/0", "open('a')", "x", "1+", "True+1", "[1]", "", "(" * 5000])
def test_the_calculator_does_nothing_else(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot calculate"):
        calculate(text)


def generated(max_tokens: int = 12, **options: Any) -> tuple[list[int], list[float]]:
    async def main() -> tuple[list[int], list[float]]:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(max_tokens, stop_tokens=(), logprobs=True, **options)
            await generation
            return generation.tokens, generation.logprobs

    return run(main())


def test_the_most_probable_of_all_logits_is_what_greedy_decoding_says(host: FakeHost) -> None:
    plain, scores = generated()
    chosen, own = generated(choose=sampling.argmax)
    assert chosen == plain
    assert own == pytest.approx(scores, abs=1e-3)


def test_a_chosen_token_may_come_later_or_never(host: FakeHost) -> None:
    async def choose(logits: list[float]) -> int | None:
        left.append(len(logits))
        return 97 if len(left) < 4 else None

    left: list[int] = []
    assert generated(choose=choose)[0] == [97, 97, 97]
    with pytest.raises(InvalidRequest, match=r"the token chosen is an integer from 0 to \d+; given -1"):
        generated(choose=lambda logits: -1)


def test_contexts_beside_take_every_token_too(host: FakeHost) -> None:
    async def main() -> Any:
        async with Context("ab") as ctx, Context("xyz") as other:
            text = await ctx.generate(5, stop_tokens=(), choose=lambda own, its: sampling.argmax(its), beside=[other])
            alone = Context("xyz")
            return text, await alone.generate(5, stop_tokens=()), ctx.tokens[2:], other.tokens[3:]

    text, expected, own, beside = run(main())
    assert text == expected
    assert own == beside


def test_what_does_not_go_with_a_function_is_refused(host: FakeHost) -> None:
    for options, why in (
        ({"choose": 3}, "choose is a function"),
        ({"choose": sampling.argmax, "drafter": "ngram"}, "neither grammar, schema nor drafter"),
        ({"choose": sampling.argmax, "schema": Grammar.regex("a")}, "neither grammar, schema nor drafter"),
        ({"beside": [Context("a")]}, "are for `choose`"),
        ({"choose": sampling.argmax, "beside": ["a"]}, "each of beside is"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            Context("a").generate(3, **options)


def test_many_continuations_are_those_of_forks_with_seeds_of_their_own(host: FakeHost) -> None:
    async def main() -> Any:
        async with Context(PROMPT) as ctx:
            many = await ctx.generate_many(3, 6, seed=5, stop_tokens=())
            as_sampler = await ctx.generate_many(2, 6, seed=5, sampler=Sampler(1.0), stop_tokens=())
            alone = []
            for seed in (5, 6, 7):
                async with ctx.fork() as fork:
                    alone.append(await fork.generate(6, temperature=1.0, seed=seed, stop_tokens=()))
            return [one.text for one in many], [one.text for one in as_sampler], alone, ctx.tokens

    many, as_sampler, alone, tokens = run(main())
    assert many == alone
    assert as_sampler == alone[:2]
    assert len(tokens) == len(PROMPT)
