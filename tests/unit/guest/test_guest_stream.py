"""`session.stream`: what goes to the client, and what is left here, is as if the generation had been iterated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import fake_model as lm
import pytest
from fake_host import FakeHost
from guest_install import install
from hypothesis import given, settings
from hypothesis import strategies as st

from inferlet import Context, InvalidRequest, QuotaExceeded, Sampler, session
from inferlet._running import run
from pieray.stops import StopMatcher

PROMPT = "abc abc"


async def iterated(ctx: Context, max_tokens: int, **options: Any) -> Any:
    generation = ctx.generate(max_tokens, **options)
    async for token in generation:
        if token.text:
            session.send(token.text)
    return generation


async def streamed(ctx: Context, max_tokens: int, **options: Any) -> Any:
    generation = ctx.generate(max_tokens, **options)
    assert await session.stream(generation) == generation.text
    return generation


def told(way: Callable[..., Any], host: FakeHost, max_tokens: int, **options: Any) -> dict[str, Any]:
    """All that a program and its client see of one generation."""
    install(host)

    async def main() -> dict[str, Any]:
        async with Context(PROMPT) as ctx:
            done = await way(ctx, max_tokens, **options)
            await ctx.generate(3)  # it goes on from the right place
            return {
                "text": done.text,
                "tokens": done.tokens,
                "reason": done.finish_reason,
                "by": done.stopped_by,
                "logprobs": done.logprobs,
                "context": ctx.tokens,
            }

    found = run(main())
    host.assert_clean()
    return found | {"sent": "".join(host.sent)}


@pytest.mark.parametrize("num_plans", [5, 0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop_tokens": ()},
        {"stop_tokens": (), "temperature": 1.0, "seed": 7},
        {"stop_tokens": (), "logprobs": True},
        {"stop_tokens": (), "stop": ["é"]},
        {"stop_tokens": (), "stop": ["h.", "zz"]},
        {"stop_tokens": (), "stop": "f c"},
        {"stop_tokens": (), "stop": [97]},
        {"stop_tokens": (), "stop": ["gc", *map(str, range(200))]},
        {"stop_tokens": range(97, 100)},
        {"stop_tokens": (), "on_token": lambda token: token.id != 98},
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0][:60],
)
def test_a_stream_is_what_iterating_sends(options: dict[str, Any], num_plans: int) -> None:
    for max_tokens in (1, 2, 40, 600):
        hosts = [FakeHost(num_plans=num_plans, order=order) for order in (None, 3)]
        expected = told(iterated, FakeHost(num_plans=num_plans), max_tokens, **options)
        for host in hosts:
            assert told(streamed, host, max_tokens, **options) == expected


@settings(max_examples=60, deadline=None)
@given(stop=st.text("abcdefgh .é", min_size=1, max_size=3), seed=st.integers(0, 30), max_tokens=st.integers(1, 300))
def test_any_stop_text_cuts_both_alike(stop: str, seed: int, max_tokens: int) -> None:
    options = {"stop": [stop, "gg"], "stop_tokens": (), "temperature": 1.0, "seed": seed}
    expected = told(iterated, FakeHost(num_plans=5), max_tokens, **options)
    assert told(streamed, FakeHost(num_plans=5, order=seed), max_tokens, **options) == expected
    assert stop not in expected["sent"]


def test_a_program_is_not_woken_for_what_goes_straight_out() -> None:
    host = FakeHost(num_plans=5)
    told(streamed, host, 200, stop_tokens=())
    assert host.calls.count("plans_stream_text") == 1
    assert host.calls.count("session_send") == host.calls.count("model_stream_push") == 0


def test_another_task_appends_while_the_text_goes_out() -> None:
    host = install(FakeHost(num_plans=5, order=2))

    async def main() -> tuple[str, list[int], list[int]]:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(60, stop_tokens=())
            task = asyncio.ensure_future(session.stream(generation))
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            before = ctx.fork()
            ctx.append("zzz")
            length = ctx.position
            text = await task
            assert before.tokens + list(b"zzz") == ctx.tokens[:length]
            before.close()
            assert len(generation.tokens) == 60
            return text, generation.tokens, ctx.tokens

    text, tokens, line = run(main())
    assert text == "".join(host.sent) == lm.detokenize(tokens, skip_special=True).rstrip("\ufffd")
    where = bytes(line).find(b"zzz") if max(line) < 256 else [*line].index(ord("z"))
    prompt = lm.tokenize(PROMPT)
    assert line == prompt + tokens[: where - len(prompt)] + list(b"zzz") + tokens[where - len(prompt) :]
    num_before = where - len(prompt)
    assert tokens[num_before:] == lm.continuation(line[: where + 3], 60 - num_before, stop=frozenset())
    host.assert_clean()


def test_a_limit_that_is_reached_is_raised_and_ends_the_generation() -> None:
    class Full(FakeHost):
        def session_send(self, text: str) -> None:
            if len("".join(self.sent)) > 10:
                raise QuotaExceeded("output_bytes: the limit is 10")
            super().session_send(text)

    host = install(Full(num_plans=0))

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            with pytest.raises(QuotaExceeded, match="output_bytes"):
                await session.stream(ctx.generate(60, stop_tokens=()))

    run(main())
    host.assert_clean()


def test_what_can_be_streamed() -> None:
    install(FakeHost(num_plans=5))

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            with pytest.raises(InvalidRequest, match="generation is a Generation"):
                await session.stream("text")  # type: ignore[arg-type]
            generation = ctx.generate(3, sampler=Sampler(0.5, seed=1))
            await session.stream(generation)
            with pytest.raises(RuntimeError, match="runs once"):
                await session.stream(generation)

    run(main())


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
)
def test_a_matcher_cuts_before_the_first_stop_text_wherever_tokens_part_it(stops: list[str], pieces: list[str]) -> None:
    matcher, out, met = StopMatcher(stops), "", None
    text = ""
    for piece in pieces:
        text += piece
        given_out, met = matcher.push(piece)
        out += given_out
        if met:
            break
    places = [(text.find(stop), stop) for stop in stops if stop in text]
    assert met == (min(places)[1] if places else None)
    assert out + matcher.flush() == (text[: min(places)[0]] if places else text)
