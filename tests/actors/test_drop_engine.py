"""`Context.drop`, samples of many rows, and a bias for most of the vocabulary, on the embedded model."""

from __future__ import annotations

from typing import Any

import pytest
from engines import assert_pages_return
from programs import program

DROP = program(
    '''
from inferlet import Context, InvalidRequest, kv, runtime

def used():
    return runtime.limits()["used"]["pages"]

async def said(ctx, **options):
    generation = ctx.generate(10, stop_tokens=(), **options)
    await generation
    return generation.tokens

async def both(text, start, end, then):
    """What a context says with tokens masked, and with the same tokens dropped."""
    found = []
    for name in ("mask", "drop"):
        async with Context(text) as ctx:
            await ctx.flush()
            before = used()
            if name == "mask":
                ctx.mask(start, end)
            else:
                await ctx.drop(start, end)
            freed = before - used()
            async with await then(ctx) as other:
                found.append([freed, await said(other), await other.logprobs("12+7=19"), other.text])
    return found

async def same(ctx):
    return ctx

async def forked(ctx):
    await said(ctx)
    return ctx.fork()

async def saved(ctx):
    await said(ctx)
    await ctx.save("dropped")
    ctx.close()
    return await Context.take("dropped")

async def cut(ctx, length):
    await said(ctx)
    ctx.truncate(length)
    return ctx

async def main(text, start, end):
    size = kv.page_size()
    whole = -(-start // size), end // size
    cases = {"same": same, "forked": forked, "saved": saved}
    cases |= {f"cut at {n}": lambda ctx, n=n: cut(ctx, n) for n in (start + 1, start + size, end - 1, end, end + 3)}
    report = {}
    for name, then in cases.items():
        (_, masked, scores, text_a), (freed, dropped, others, text_b) = await both(text, start, end, then)
        near = max(abs(a - b) for a, b in zip(scores, others, strict=True)) < 1e-3
        report[name] = [freed == max(0, whole[1] - whole[0]), masked == dropped, near, text_a == text_b]
    async with Context(text) as ctx:
        await ctx.drop(start, end)
        drafted = await said(ctx.fork(), drafter=lambda tokens: [1, 2])
        report["a drafter"] = [drafted == await said(ctx)]
        try:
            ctx.mask(start, end, visible=True)
        except InvalidRequest as error:
            report["shown again"] = ["were dropped" in str(error)]
    return report
''',
    "drop",
)
TEXT = "The number is 12. The colour is red. The word is lamp. 30+12=42. The number is 12. 12+7=19; 5+5=10. 1 2 3 4 "


@pytest.mark.parametrize(("start", "end"), [(16, 64), (20, 60), (3, 9), (0, 48), (16, 17)])
def test_what_is_dropped_is_as_if_masked_and_its_pages_are_free(engine: Any, start: int, end: int) -> None:
    report = engine.launch(DROP, text=TEXT, start=start, end=end).result(timeout=120)
    assert len(report) >= 9
    assert all(map(all, report.values())), {name: found for name, found in report.items() if not all(found)}
    assert_pages_return(engine)


SINK = program(
    """
from inferlet import Context, kv, runtime

async def main(window, num_tokens):
    size, most = kv.page_size(), 0
    async with Context("1 2 3 4 5 6 7 8 9 10 11 12 ") as ctx:
        async for _ in ctx.generate(num_tokens, stop_tokens=()):
            if ctx.position > size + window and ctx.position % size == 0:
                await ctx.drop(size, ctx.position - window)
                most = max(most, runtime.limits()["used"]["pages"])
        return [most, ctx.position]
""",
    "sink",
)


def test_a_window_with_a_sink_needs_no_more_pages_however_long_it_gets(engine: Any) -> None:
    most, position = engine.launch(SINK, window=48, num_tokens=200).result(timeout=120)
    assert position > 200
    assert most == 1 + 48 // 16


ROWS = program(
    """
from inferlet import Sampler, forward, kv, model, queue

async def main(text, drafts):
    line, tokens = queue.create(), model.tokenize(text)
    pages = kv.alloc(4)
    accepted = await forward.verify(line, pages, 0, tokens, drafts)
    other = kv.alloc(4)
    step = forward.forward(line, other, 0, [*tokens, *drafts])
    first = len(tokens) - 1
    drawn = await step.samples(range(first, first + len(drafts) + 1))
    step = forward.forward(line, kv.alloc(4), 0, [*tokens, *drafts])
    seeded = Sampler(temperature=1.0, seed=3, typical_p=0.9)
    both = step.samples([-1, 0, -1], sampler=seeded), step.sample(0, sampler=seeded)
    many, one = await both[0], await both[1]
    return [accepted, drawn, many[0] == many[2], many[1] == one[0]]
""",
    "rows",
)


def test_samples_of_rows_tell_what_a_verification_does_not(engine: Any) -> None:
    accepted, drawn, is_same, is_one = engine.launch(ROWS, text="12+7=", drafts=[5, 6, 7]).result(timeout=60)
    assert len(drawn) == 4
    assert drawn[: len(accepted)] == accepted
    assert is_same
    assert is_one


BIAS = program(
    """
from inferlet import Context, Sampler, model

async def main():
    some = model.tokenize("0123456789")
    async with Context("12+7=") as ctx:
        found = {}
        for name, sampler in {
            "plain": Sampler(temperature=0.0), "shifted": Sampler(temperature=0.0, other_bias=-3.0),
            "some": Sampler(temperature=0.0, other_bias=-100.0, logit_bias=dict.fromkeys(some, 0.0)),
            "none": Sampler(temperature=0.0, other_bias=100.0, logit_bias=dict.fromkeys(some, 0.0)),
            "drawn": Sampler(temperature=1.0, seed=5, other_bias=-100.0, logit_bias=dict.fromkeys(some, 0.0)),
        }.items():
            generation = ctx.fork().generate(12, sampler=sampler, stop_tokens=())
            await generation
            found[name] = generation.tokens
        return [found, some]
""",
    "bias",
)


def test_a_bias_for_all_tokens_but_some(engine: Any) -> None:
    found, some = engine.launch(BIAS).result(timeout=60)
    assert found["plain"] == found["shifted"]
    assert set(found["some"]) <= set(some)
    assert set(found["drawn"]) <= set(some)
    assert not set(found["none"]) & set(some)
