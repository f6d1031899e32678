"""Generations that run as plans: what the consumer does between two tokens, and who decides what comes next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import fake_model as lm
import pytest
from fake_host import FakeHost
from guest_install import install

from inferlet import BadHandle, Context, Generation, InvalidRequest, QuotaExceeded, Sampler, Token
from inferlet._running import run

PROMPT = "abc abc"


def said(text: str, max_tokens: int, **options: object) -> list[int]:
    return lm.continuation(lm.tokenize(text), max_tokens, stop=frozenset(), **options)  # type: ignore[arg-type]


def said_after(tokens: list[int], max_tokens: int) -> list[int]:
    return lm.continuation(tokens, max_tokens, stop=frozenset())


@pytest.fixture(params=[None, 3])
def host(request: pytest.FixtureRequest, make_host: Callable[..., FakeHost]) -> FakeHost:
    return make_host(order=request.param)


def test_generate_is_a_plan_where_there_are_plans(make_host: Callable[..., FakeHost]) -> None:
    host = make_host(num_plans=5)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(20, stop_tokens=())
            await generation
            assert generation.is_plan
            own = ctx.generate(5, stop_tokens=(), drafter=lambda tokens: [])
            await own
            assert not own.is_plan
            await ctx.generate(5)

    run(main())
    assert [text for level, text in host.logs if level == "debug"] == [
        "generate runs as a pass per draft: the drafter is a function"
    ]


def test_a_plan_costs_fewer_waits_than_tokens(make_host: Callable[..., FakeHost]) -> None:
    host = make_host(num_plans=5)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            await ctx.generate(30, stop_tokens=())

    run(main())
    assert host.calls.count("plans_read") == 10
    assert host.calls.count("tickets_wait") == host.calls.count("model_stream_push") == 0
    assert host.calls.count("plans_create") == 1


def test_a_long_generation_is_several_plans(make_host: Callable[..., FakeHost]) -> None:
    host = make_host(num_plans=5)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(600, stop_tokens=())
            await generation
            assert generation.tokens == said(PROMPT, 600)

    run(main())
    assert host.calls.count("plans_create") == 3


def test_the_context_is_whole_between_two_tokens(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            async for _ in ctx.generate(12, stop_tokens=()):
                with_fork = ctx.fork()
                line = ctx.tokens
                await with_fork.generate(3, stop_tokens=())
                assert with_fork.tokens == line + said_after(line, 3)
                with_fork.close()
                assert await ctx.distribution(2) == list(lm.distribution(lm.chain_of(line))[:2])
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, 12)

    run(main())


def test_what_is_appended_between_two_tokens_is_gone_on_from(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            line, count = lm.tokenize(PROMPT), 0
            async for token in ctx.generate(9, stop_tokens=()):
                assert token.id == said_after(line, 1)[0]
                line.append(token.id)
                count += 1
                if count in (2, 5):
                    ctx.append("xyz")
                    line += b"xyz"
                if count == 7:
                    ctx.truncate(4)
                    line = line[:4]
            assert (ctx.tokens, count) == (line, 9)

    run(main())


def test_another_task_forks_while_a_token_is_waited_for(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            task = asyncio.create_task(ctx.collect_text(60, stop_tokens=()))
            for _ in range(5):
                await asyncio.sleep(0.01)
                fork = ctx.fork()
                line = fork.tokens
                await fork.generate(4, stop_tokens=())
                assert fork.tokens == line + said_after(line, 4)
                fork.close()
            await task
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, 60)

    run(main())


def test_a_context_closed_in_the_middle_ends_its_generation(host: FakeHost) -> None:
    async def main() -> None:
        ctx = Context(PROMPT)
        generation = ctx.generate(50, stop_tokens=())
        async for _ in generation:
            if generation.num_tokens == 3:
                ctx.close()

    with pytest.raises(BadHandle, match="closed"):
        run(main())


def test_on_token_changes_what_comes_next(host: FakeHost) -> None:
    seen: list[Token] = []

    def change(token: Token) -> object:
        seen.append(token)
        if len(seen) == 3:
            return "zz"
        if len(seen) == 6:
            return Sampler(temperature=1.0, seed=4)
        return False if len(seen) == 10 else None

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(50, stop_tokens=(), on_token=change)  # type: ignore[arg-type]
            await generation
            line = lm.tokenize(PROMPT)
            line += said_after(line, 3)
            line += b"zz"
            line += said_after(line, 3)
            line += lm.continuation(line, 4, temperature=1.0, seed=4, stop=frozenset())
            assert ctx.tokens == line
            assert (generation.finish_reason, generation.num_tokens) == ("stop", 10)

    run(main())
    assert len(seen) == 10


@pytest.mark.parametrize("quality", [0, 1, 3])
def test_a_drafter_of_ones_own_changes_the_passes_and_not_the_text(host: FakeHost, quality: int) -> None:
    def drafter(tokens: list[int]) -> list[int]:
        right = said_after(tokens, 4)
        return right[:quality] + [1] * (4 - quality)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(24, temperature=0.0, stop_tokens=(), drafter=drafter)
            await generation
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, 24)
            before = host.num_passes
            assert before <= 24 // (quality + 1) + 1
            await ctx.generate(4, stop_tokens=())
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, 28)

    run(main())


def test_nothing_to_do_is_nothing_done(make_host: Callable[..., FakeHost]) -> None:
    host = make_host(max_context=7)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            for max_tokens in (0, 5):
                generation = ctx.generate(max_tokens, stop=[""], stop_tokens=())
                assert await generation == ""
                assert (generation.finish_reason, generation.num_tokens) == ("length", 0)

    run(main())
    assert host.num_passes == 0


def test_an_unknown_drafter_is_named(host: FakeHost) -> None:
    with pytest.raises(InvalidRequest, match="ngram; given 'medusa'"):
        Context(PROMPT).generate(drafter="medusa")


def test_few_page_handles_make_shorter_plans(make_host: Callable[..., FakeHost]) -> None:
    make_host(num_pages=9, num_plans=5)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            await ctx.generate(28, stop_tokens=())
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, 28)

    run(main())


class Counting(FakeHost):
    """Knows how many plans were open at one time."""

    most = 0

    def plans_create(self, *args: Any) -> int:
        handle = super().plans_create(*args)
        self.most = max(self.most, len(self.plans))
        return handle


def counting(num_plans: int, order: int | None = None) -> Counting:
    return install(Counting(num_plans=num_plans, order=order))  # type: ignore[return-value]


@pytest.mark.parametrize(("num_plans", "order"), [(1, None), (4, None), (4, 5)])
def test_generations_past_the_limit_of_plans_queue(num_plans: int, order: int | None) -> None:
    host = counting(num_plans, order)

    async def one(number: int) -> None:
        async with Context(f"{PROMPT}{number}") as ctx:
            generation = ctx.generate(9, stop_tokens=())
            await generation
            assert generation.is_plan
            assert generation.tokens == said(f"{PROMPT}{number}", 9)

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(num_plans * 4 + 1)))

    run(main())
    assert host.most == num_plans
    assert "forward_forward" not in host.calls
    host.assert_clean()


def test_generations_that_wait_for_each_other_share_one_plan() -> None:
    """The outer one's plan is given up for the inner one's, and begun again: the same tokens in the end."""
    host = counting(1)

    async def main() -> None:
        async with Context(PROMPT) as ctx, Context("other") as other:
            inner: list[int] = []
            outer = ctx.generate(4, stop_tokens=())
            async for _ in outer:
                found = other.generate(3, stop_tokens=())
                await found
                inner += found.tokens
            assert outer.tokens == said(PROMPT, 4)
            assert inner == said("other", 12)

            started = asyncio.Event()  # the inner one asks while the outer one is waited for

            async def ask() -> list[int]:
                started.set()
                found = other.generate(3, stop_tokens=())
                await found
                return found.tokens

            task = asyncio.ensure_future(ask())
            more = ctx.generate(5, stop_tokens=())
            async for _ in more:
                await task
            assert [*outer.tokens, *more.tokens] == said(PROMPT, 9)

    run(main())
    assert host.most == 1
    host.assert_clean()


def test_a_generation_that_gives_up_waiting_leaves_its_turn_to_the_next() -> None:
    host = counting(1)

    async def one(ctx: Context) -> list[int]:
        generation = ctx.generate(5, stop_tokens=())
        await generation
        return generation.tokens

    async def main() -> None:
        contexts = [Context(PROMPT) for _ in range(4)]
        tasks = [asyncio.ensure_future(one(ctx)) for ctx in contexts]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[2].cancel()
        assert await tasks[0] == await tasks[3] == said(PROMPT, 5)
        assert tasks[1].cancelled()
        assert tasks[2].cancelled()
        for ctx in contexts:
            ctx.close()

    run(main())
    host.assert_clean()


def test_a_limit_of_no_plans_means_a_pass_per_token() -> None:
    host = counting(0)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(5, stop_tokens=())
            await generation
            assert not generation.is_plan
            assert generation.tokens == said(PROMPT, 5)

    run(main())
    assert [text for level, text in host.logs if level == "debug"] == [
        "generate runs as a pass per token: no plan is free"
    ]


def test_a_limit_of_pages_is_no_limit_of_plans() -> None:
    """Nobody waits for a plan that would not help."""
    host = install(FakeHost(num_pages=3))

    async def main() -> None:
        async with Context(PROMPT) as first, Context(PROMPT) as second:
            generation = aiter(first.generate(5, stop_tokens=()))
            await anext(generation)
            with pytest.raises(QuotaExceeded, match="pages"):
                await second.generate(5)
            await generation.aclose()  # type: ignore[attr-defined]

    run(main())
    host.assert_clean()


def test_cancelling_a_task_ends_its_generation_and_frees_what_it_had_ahead(make_host: Callable[..., FakeHost]) -> None:
    host = make_host(num_plans=2)

    async def text(generation: Generation) -> str:
        return await generation

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(200, stop_tokens=())
            task = asyncio.ensure_future(text(generation))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            assert not host.plans
            assert len(host.pages) == -(-ctx.sequence.kv_len // host.page_size)
            assert await ctx.generate(5, stop_tokens=())

    run(main())
