"""Context and generate: equal to the reference, on pages that the host has checked."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import fake_model as lm
import pytest
from fake_host import FakeHost

from inferlet import BadHandle, Context, Grammar, InvalidRequest, OutOfPages, QuotaExceeded, Sampler, greedy
from inferlet._running import run
from pieray.errors import OutOfPages as HostOutOfPages

PROMPT = "abc abc"


def said(text: str, max_tokens: int, **options: object) -> list[int]:
    return lm.continuation(lm.tokenize(text), max_tokens, **options)  # type: ignore[arg-type]


def text_of(tokens: list[int]) -> str:
    return lm.detokenize([t for t in tokens if t != lm.END], skip_special=True)


@pytest.mark.parametrize("page_size", [1, 3, 4, 16])
@pytest.mark.parametrize("order", [None, 7])
def test_generate_says_what_the_model_says(
    make_host: Callable[..., FakeHost], page_size: int, order: int | None
) -> None:
    make_host(page_size=page_size, order=order)

    async def main() -> list[int]:
        async with Context(PROMPT) as ctx:
            await ctx.generate(40, stop_tokens=())
            return ctx.tokens

    assert run(main()) == lm.tokenize(PROMPT) + said(PROMPT, 40, stop=frozenset())


def test_a_context_is_pinned_once_until_it_is_unpinned_or_closed(host: FakeHost) -> None:
    one, two = Context(PROMPT), Context(PROMPT)
    one.pin()
    one.pin()
    two.pin()
    fork = two.fork()
    assert host.num_pins == 2
    one.unpin()
    one.unpin()
    assert host.num_pins == 1
    for ctx in (one, two, fork):
        ctx.close()
    assert host.num_pins == 0
    with pytest.raises(BadHandle):
        one.pin()


def test_a_generation_ends_at_its_deadline_with_what_it_has(host: FakeHost) -> None:
    def second(_: object) -> None:
        host.clock += 1

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(40, stop_tokens=(), deadline_s=3.5, on_token=second)
            await generation
            assert (generation.finish_reason, generation.num_tokens) == ("deadline", 4)
            assert generation.text == text_of(generation.tokens)
            await ctx.generate(10, stop_tokens=(), deadline_s=100)
            none = ctx.generate(40, deadline_s=0)
            assert (await none, none.finish_reason) == ("", "deadline")
            with pytest.raises(InvalidRequest, match="deadline_s"):
                ctx.generate(40, deadline_s=-1)
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, 14, stop=frozenset())

    run(main())


def test_a_generation_for_which_nothing_comes_ends_at_its_deadline(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            await ctx.generate(3, stop_tokens=())
            host.is_stalled = True
            generation = ctx.generate(40, stop_tokens=(), deadline_s=7)
            await generation
            assert (generation.finish_reason, generation.num_tokens) == ("deadline", 0)
            assert 7 <= host.clock < 7.1
            host.is_stalled = False
            await ctx.generate(3, stop_tokens=())
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, 6, stop=frozenset())

    run(main())


def test_expected_tokens_are_told_in_pages_beyond_those_that_are_there(make_host: Callable[..., FakeHost]) -> None:
    host = make_host(page_size=4)

    async def main() -> None:
        async with Context(PROMPT) as ctx:  # 7 tokens
            ctx.expect(9)
            await ctx.flush()  # 6 of them run
            ctx.expect(tokens=10)
            ctx.expect(1)
            with pytest.raises(InvalidRequest):
                ctx.expect(-1)

    run(main())
    assert host.expected == [4, 3]


def test_sampled_text_depends_on_the_seed_alone(host: FakeHost) -> None:
    async def main(seed: int) -> list[int]:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(30, temperature=1.0, top_k=5, seed=seed, stop_tokens=())
            await generation
            return generation.tokens

    assert run(main(1)) == said(PROMPT, 30, temperature=1.0, top_k=5, seed=1, stop=frozenset())
    assert run(main(1)) == run(main(1)) != run(main(2))


def test_without_a_seed_two_generations_differ(host: FakeHost) -> None:
    async def main() -> str:
        async with Context(PROMPT) as ctx:
            return await ctx.collect_text(30, sampler=Sampler(), stop_tokens=())

    assert run(main()) != run(main())


def test_a_stop_token_ends_the_text_and_stays_in_the_context(host: FakeHost) -> None:
    async def main() -> None:
        async with Context("seed 3") as ctx:
            generation = ctx.generate(1000, temperature=1.0, seed=3)
            text = await generation
            expected = said("seed 3", 1000, temperature=1.0, seed=3)
            assert expected[-1] == lm.END
            assert ctx.tokens == lm.tokenize("seed 3") + expected
            assert (text, generation.tokens) == (text_of(expected), expected[:-1])
            assert (generation.finish_reason, generation.stopped_by) == ("stop", lm.END)

    run(main())


def test_a_stop_string_is_met_across_tokens_and_does_not_go_out(host: FakeHost) -> None:
    full = text_of(said(PROMPT, 60, stop=frozenset()))
    stop = full[20:24]
    cut = full.index(stop)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(60, stop=[stop, "never there"], stop_tokens=())
            pieces = [token.text async for token in generation]
            assert "".join(pieces) == generation.text == full[:cut]
            assert (generation.finish_reason, generation.stopped_by) == ("stop", stop)
            assert ctx.text.endswith(full[: cut + len(stop)])

    run(main())


def test_text_held_for_a_stop_string_comes_out_at_the_end(host: FakeHost) -> None:
    full = text_of(said(PROMPT, 10, stop=frozenset()))

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            pieces = [t.text async for t in ctx.generate(10, stop=full[-3:] + "?", stop_tokens=())]
            assert "".join(pieces) == full
            assert len(pieces) == 10

    run(main())


def test_a_stop_id_is_given_like_a_string(host: FakeHost) -> None:
    third = said(PROMPT, 3)[2]

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(50, stop=[third])
            await generation
            assert generation.stopped_by == third

    run(main())


def test_leaving_a_generation_leaves_a_context_that_goes_on(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            async for _ in ctx.generate(50, stop_tokens=()):
                if ctx.position == 12:
                    break
            await ctx.generate(8, stop_tokens=())
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, 13, stop=frozenset())
        assert len(ctx.tokens) == 20

    run(main())


def test_an_error_leaves_a_context_that_goes_on(host: FakeHost) -> None:
    host.fail_pass = lambda command: HostOutOfPages("no page in 30 s") if command.kv_len == 9 else None

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            with pytest.raises(OutOfPages, match="no page in 30 s"):
                await ctx.generate(20, stop_tokens=())
            assert ctx.position == 10
            host.fail_pass = lambda _: None
            await ctx.generate(5, stop_tokens=())
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, 8, stop=frozenset())

    run(main())


def test_cancelling_leaves_a_context_that_goes_on(make_host: Callable[..., FakeHost]) -> None:
    make_host(order=1)

    async def main() -> None:
        async with Context(PROMPT) as ctx, Context("other") as other:
            task = asyncio.create_task(ctx.collect_text(10_000, stop_tokens=()))
            await other.generate(20, stop_tokens=())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            had = ctx.position
            await ctx.generate(5, stop_tokens=())
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, had - len(PROMPT) + 5, stop=frozenset())

    run(main())


def test_forks_are_equal_to_runs_of_their_own(make_host: Callable[..., FakeHost]) -> None:
    host = make_host(order=2)

    async def one(ctx: Context, seed: int) -> list[int]:
        async with ctx:
            generation = ctx.generate(15, temperature=1.0, seed=seed, stop_tokens=())
            await generation
            return generation.tokens

    async def main() -> list[list[int]]:
        async with Context(PROMPT) as ctx:
            await ctx.flush()
            before = host.num_computed
            results = await asyncio.gather(*(one(ctx.fork(), seed) for seed in range(8)))
            assert host.num_computed - before == 8 * 15, "the prompt was run once, for all"
            return results

    assert run(main()) == [said(PROMPT, 15, temperature=1.0, seed=s, stop=frozenset()) for s in range(8)]


def test_truncate_goes_back(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            await ctx.generate(20, stop_tokens=())
            ctx.truncate(5)
            assert len(host.pages) == 2, "five tokens need two pages of four"
            await ctx.generate(6, stop_tokens=())
            assert ctx.tokens == lm.tokenize("abc a") + said("abc a", 6, stop=frozenset())
            with pytest.raises(InvalidRequest, match="from 0 to 11; given 12"):
                ctx.truncate(12)

    run(main())


def test_distribution_and_logprobs_are_the_models(host: FakeHost) -> None:
    spread = lm.distribution(lm.chain_of(lm.tokenize(PROMPT)))
    target = [*b"hgf", lm.END]
    expected, tokens = [], lm.tokenize(PROMPT)
    for token in target:
        expected.append(math.log(dict(lm.distribution(lm.chain_of(tokens)))[token]))
        tokens = [*tokens, token]

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            assert await ctx.distribution(3) == list(spread[:3])
            assert await ctx.logprobs(target) == pytest.approx(expected)
            assert await ctx.logprobs("") == []
            assert ctx.text == PROMPT
            await ctx.generate(5, stop_tokens=())
            assert ctx.tokens == lm.tokenize(PROMPT) + said(PROMPT, 5, stop=frozenset())

    run(main())


@pytest.mark.parametrize("top", [1, 16])
def test_tokens_carry_their_logprobs(host: FakeHost, top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferlet._sources.TOP_TOKENS", top)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(12, temperature=2.0, seed=5, logprobs=True, stop_tokens=())
            found = [token.logprob async for token in generation]
            assert found == generation.logprobs
            line, expected = lm.tokenize(PROMPT), []
            for token in generation.tokens:
                expected.append(math.log(dict(lm.distribution(lm.chain_of(line)))[token]))
                line.append(token)
            assert found == pytest.approx(expected)

    run(main())


def test_a_conversation_reads_as_the_template_writes_it(host: FakeHost) -> None:
    async def main() -> None:
        async with Context() as ctx:
            ctx.system("be kind").user("one")
            first = ctx.generate(200, temperature=1.0, seed=4)
            await first
            assert first.finish_reason == "stop"
            ctx.user("two")
            second = ctx.generate(3, stop_tokens=())
            await second
            assert second.finish_reason == "length"
            ctx.user("three").cue().append("so ")
            expected = (
                f"<|system|>be kind<|end|><|user|>one<|end|><|assistant|>{first.text}<|end|>"
                f"<|user|>two<|end|><|assistant|>{second.text}<|end|><|user|>three<|end|><|assistant|>so "
            )
            assert ctx.text.replace("�", "") == expected.replace("�", "")

    run(main())


def test_truncate_forgets_the_messages_cut_off(host: FakeHost) -> None:
    async def main() -> None:
        async with Context() as ctx:
            ctx.user("one")
            length = ctx.position
            await ctx.generate(3)
            ctx.truncate(length)
            ctx.user("two")
            assert ctx.text == "<|user|>one<|end|><|user|>two<|end|>"

    run(main())


def test_no_call_per_token_but_the_five(make_host: Callable[..., FakeHost]) -> None:
    host = make_host(num_plans=0)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            await ctx.generate(4, stop_tokens=())
            host.calls.clear()
            async for _ in ctx.generate(2, stop_tokens=()):
                host.calls.append("yield")

    run(main())
    token = ["forward_forward", "forward_sample", "tickets_wait", "tickets_take_tokens", "model_stream_push", "yield"]
    calls = [call for call in host.calls if call not in ("kv_alloc", "kv_free", "plans_create")]
    assert calls == ["model_stream_open", *token, *token, "model_stream_close"]


def test_a_closed_context_says_so(host: FakeHost) -> None:
    ctx = Context(PROMPT)
    ctx.close()
    ctx.close()
    for use in (lambda: ctx.append("x"), ctx.fork, ctx.generate, lambda: ctx.truncate(0)):
        with pytest.raises(BadHandle, match="closed"):
            use()


def test_a_context_let_go_gives_its_pages_back(host: FakeHost) -> None:
    async def main() -> None:
        await Context(PROMPT).generate(4)
        assert not host.pages

    run(main())


def test_bad_arguments_are_named(host: FakeHost) -> None:
    ctx = Context(PROMPT)
    with pytest.raises(InvalidRequest, match=r"temperature is from 0.0 to inf; given -1"):
        ctx.generate(temperature=-1)
    with pytest.raises(InvalidRequest, match="max_tokens is an integer from 0 to 4294967295; given -5"):
        ctx.generate(-5)
    with pytest.raises(InvalidRequest, match="either sampler or top_k"):
        ctx.generate(sampler=greedy(), top_k=3)
    with pytest.raises(InvalidRequest, match="the context is empty"):
        run(Context().collect_text(3))


def test_generation_ends_with_the_models_context(make_host: Callable[..., FakeHost]) -> None:
    make_host(max_context=12)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            generation = ctx.generate(100, stop_tokens=())
            await generation
            assert (generation.num_tokens, generation.finish_reason) == (5, "length")
            ctx.append("!")
            with pytest.raises(InvalidRequest, match="context is 12 tokens; this one has 13"):
                await ctx.generate(1)

    run(main())


def test_quota_of_pages_is_an_error_that_leaves_the_context_usable(make_host: Callable[..., FakeHost]) -> None:
    make_host(num_pages=3)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            with pytest.raises(QuotaExceeded, match="pages: 3 is the limit"):
                await ctx.generate(20, stop_tokens=())
            assert ctx.position <= 13
            ctx.truncate(4)
            await ctx.generate(3, stop_tokens=())

    run(main())


def test_more_contexts_than_queues_share_them(make_host: Callable[..., FakeHost]) -> None:
    host = make_host(num_queues=3)

    async def one(seed: int) -> list[int]:
        async with Context(PROMPT) as ctx:
            await ctx.generate(5, temperature=1.0, seed=seed, stop_tokens=())
            return ctx.tokens[len(PROMPT) :]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*map(one, range(10)))

    assert run(main()) == [said(PROMPT, 5, temperature=1.0, seed=s, stop=frozenset()) for s in range(10)]
    assert len(host.queues) == 3


def test_two_passes_at_once_on_one_context_are_refused(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            results = await asyncio.gather(ctx.collect_text(3), ctx.collect_text(3), return_exceptions=True)
            assert [type(r) for r in results] == [str, InvalidRequest]

    run(main())


def test_a_seed_alone_draws(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            texts = set()
            for seed in (1, 1, 2):
                generation = ctx.fork().generate(12, seed=seed, stop_tokens=())
                texts.add(await generation)
                assert generation.tokens == said(PROMPT, 12, temperature=1.0, seed=seed, stop=frozenset())
            assert len(texts) == 2
            greedy = ctx.fork().generate(12, stop_tokens=(), logit_bias={5: 0.0})
            await greedy
            assert greedy.tokens == said(PROMPT, 12, stop=frozenset())

    run(main())


def test_a_grammar_and_a_schema_are_one_too_many(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            with pytest.raises(InvalidRequest, match="either grammar or schema"):
                ctx.generate(3, grammar=Grammar.regex("a+"), schema={"type": "integer"})

    run(main())


def test_contexts_that_do_not_reuse_have_queues_of_their_own(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as with_reuse, Context(PROMPT, reuse=False) as without:
            fork = without.fork()
            await asyncio.gather(*(ctx.generate(3) for ctx in (with_reuse, without, fork)))
            assert with_reuse.sequence.queue not in host.not_reusing
            assert {without.sequence.queue, fork.sequence.queue} == host.not_reusing
            fork.close()

    run(main())
    run(main())
    assert len(host.queues) == 3  # they are used again
