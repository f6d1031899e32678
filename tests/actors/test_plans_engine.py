"""Decode plans on a running engine: the text of forward and sample, at any concurrency; forks, drafts, hostile use."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from engines import assert_pages_return
from programs import GENERATE, program

from pieray.errors import PierayError

BOTH_WAYS = program(
    """
from inferlet import Context, forward, kv, model, queue

async def by_passes(prompt, max_tokens, temperature, seed):
    tokens, ids, kv_len = model.tokenize(prompt), [], 0
    q, pages = queue.create(), kv.alloc(-(-(len(tokens) + max_tokens) // kv.page_size()))
    while len(ids) < max_tokens:
        run = forward.forward(q, pages, kv_len, tokens)
        (token,) = await run.sample(-1, temperature, seed=seed)
        kv_len += len(tokens)
        tokens = [token]
        ids.append(token)
    kv.free(pages)
    return ids

async def main(prompt, max_tokens=40, temperature=0.0, seed=0, drafter=None):
    async with Context(prompt) as ctx:
        generation = ctx.generate(max_tokens, temperature=temperature, seed=seed, stop_tokens=(), drafter=drafter)
        await generation
        return generation.tokens, await by_passes(prompt, max_tokens, temperature, seed), generation.is_plan
""",
    "both-ways",
)


@pytest.mark.parametrize("concurrency", [1, 8, 32])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_plan_gives_the_text_of_forward_and_sample(engine: Any, concurrency: int, temperature: float) -> None:
    processes = [
        engine.launch(BOTH_WAYS, prompt=f"{10 + i}+{40 - i}=", temperature=temperature, seed=i)
        for i in range(concurrency)
    ]
    for process in processes:
        planned, passed, is_plan = process.result(timeout=120)
        assert planned == passed
        assert len(planned) == 40
        assert is_plan


def test_prompt_lookup_gives_the_same_text(engine: Any) -> None:
    prompt = "copy: one two three one two three one two three -> one two three "
    planned, passed, _ = engine.launch(BOTH_WAYS, prompt=prompt, drafter="ngram", max_tokens=60).result(timeout=60)
    assert planned == passed


KINDS = program(
    """
from inferlet import Context, Grammar, Sampler, session

CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "n": {"type": "integer"}}}
WAYS = {
    "greedy": {},
    "drawn": {"temperature": 0.9, "seed": 3},
    "cut": {"sampler": Sampler(temperature=1.2, top_k=40, top_p=0.95, min_p=0.01, seed=4)},
    "typical": {"temperature": 1.0, "typical_p": 0.8, "seed": 5},
    "biased": {"logit_bias": {" the": 2.0, "1": -3.0}},
    "stop text": {"stop": ["e ", "1", "ing"]},
    "stop token": {"stop_tokens": range(100, 140)},
    "pattern": {"grammar": Grammar.regex("(yes|no|maybe)( [a-z]{2,6}){3}")},
    "schema": {"schema": CITY, "temperature": 0.8, "seed": 6},
    "drafts": {"drafter": "ngram"},
    "own drafts": {"drafter": lambda tokens: tokens[-4:-2]},
    "scored": {"logprobs": True, "temperature": 0.7, "seed": 8},
}

async def main(kind, how):
    async with Context("copy: one two three one two three one two -> ") as ctx:
        generation = ctx.generate(40, **{"stop_tokens": ()} | WAYS[kind])
        if how == "stream":
            await session.stream(generation)
        elif how == "iterate":
            async for token in generation:
                session.send(token.text)
        else:
            session.send(await generation)
        logprobs = [round(value, 4) for value in generation.logprobs] if "logprobs" in WAYS[kind] else []
        return generation.tokens, generation.finish_reason, logprobs, len(ctx.tokens)
""",
    "kinds",
)
WAYS = (
    "greedy",
    "drawn",
    "cut",
    "typical",
    "biased",
    "stop text",
    "stop token",
    "pattern",
    "schema",
    "drafts",
    "own drafts",
    "scored",
)


def told(process: Any) -> tuple[Any, str]:
    result = process.result(timeout=120)
    return result, "".join(event.text for event in process)


def test_every_kind_of_generation_says_in_a_crowd_what_it_says_alone_however_it_is_read(engine: Any) -> None:
    alone = {kind: told(engine.launch(KINDS, kind=kind, how="await")) for kind in WAYS}
    assert alone["drafts"] == alone["own drafts"] == alone["greedy"]
    assert len({text for _, text in alone.values()}) >= 8
    assert {result[1] for result, _ in alone.values()} == {"length", "stop"}
    asked = [(kind, how) for how in ("await", "stream", "iterate") for kind in WAYS]
    crowd = [engine.launch(KINDS, kind=kind, how=how) for kind, how in asked]
    for (kind, how), process in zip(asked, crowd, strict=True):
        assert (kind, how, told(process)) == (kind, how, alone[kind])


BRANCHES = program(
    """
import asyncio
from inferlet import Context

async def whole(text, n):
    async with Context(text) as ctx:
        generation = ctx.generate(n, stop_tokens=())
        await generation
        return ctx.tokens

async def main():
    async with Context("12+7=") as ctx:
        seen, branches = 0, []
        generation = ctx.generate(40, stop_tokens=())
        async for token in generation:
            seen += 1
            if seen in (3, 10, 11):
                fork = ctx.fork()
                fork.append(" and ")
                line = fork.tokens
                await fork.generate(12, stop_tokens=())
                assert fork.tokens == await whole(line, 12), "a fork of a running generation"
                fork.close()
            if seen == 20:
                spread = await ctx.distribution(5)
                assert len(spread) == 5
            if seen == 30:
                break
        left = ctx.tokens
        assert left == await whole("12+7=", 30)
        ctx.append("!")
        line = ctx.tokens
        await ctx.generate(9, stop_tokens=())
        assert ctx.tokens == await whole(line, 9)
        ctx.truncate(8)
        await ctx.generate(5, stop_tokens=())
        assert ctx.tokens == await whole(line[:8], 5)
    return "done"
""",
    "branches",
)


def test_between_two_tokens_the_context_is_whole(engine: Any) -> None:
    assert engine.launch(BRANCHES).result(timeout=60) == "done"


PAUSES = program(
    """
from inferlet import Plan, kv, model, queue

async def main():
    tokens, q, pages = model.tokenize("12+7="), queue.create(), kv.alloc(20)
    with Plan(q, pages, 0, tokens, 100) as whole:
        whole.set_drafter(4)
        whole.start()
        expected = [token async for token in whole]
    with Plan(q, pages, 0, tokens, 100) as plan:
        plan.score()
        plan.start()
        got = (await plan.next_scored())[0]
        for _ in range(6):
            await plan.pause()
            while more := await plan.next():
                got += more
            assert plan.state()["state"] == "paused" or plan.state()["finish_reason"] == "length"
            keep = max(1, len(got) - 2)
            plan.truncate(keep)
            got = got[:keep]
            plan.resume()
            got += await plan.next()
        while more := await plan.next():
            got += more
        state = plan.state()
        assert (state["state"], state["finish_reason"]) == ("ended", "length"), state
        assert got == expected
    kv.free(pages)
    queue.close(q)
    return len(got)
""",
    "pauses",
)


def test_pause_truncate_resume_on_the_handlers(engine: Any) -> None:
    assert engine.launch(PAUSES).result(timeout=60) == 100


HOSTILE = program(
    """
from inferlet import _host, kv, model, queue, BadHandle, InvalidRequest, QuotaExceeded, Plan
from inferlet import Error

def code(call, *args):
    try:
        call(*args)
    except Error as error:
        return error.code.replace("-", "_")
    return "ok"

async def main():
    q, pages, plans = queue.create(), kv.alloc(8), _host.plans
    calls = (plans.start, plans.next, plans.pause, plans.resume, plans.state, plans.close, plans.cancel)
    assert {code(call, forged) for forged in (0, 1, 7, 2**32 - 1) for call in calls} == {"bad_handle"}
    for args in ((q, pages, 0, [1], 2**32 - 1, 0), (q, pages, 2**32 - 1, [1], 1, 0), (q, pages, 0, [2**32 - 1], 1, 0),
                 (q, pages, 0, [], 1, 0), (q, pages, 0, [1], 10**6, 0), (q, pages, 0, [1], 0, 0)):
        assert code(plans.create, *args) == "invalid", args
    assert code(plans.create, q, [1, 2, 3], 0, [1], 1, 0) == "bad_handle"
    assert code(plans.create, q, [pages[0]] * 8, 0, [1], 100, 0) == "ok"
    doubled = plans.create(q, [pages[0]] * 8, 0, [1], 100, 0)
    assert code(plans.start, doubled) == "invalid", "a page to write to is named twice"
    unread = plans.create(q, pages, 40, [1], 3, 0)
    assert code(plans.start, unread) == "invalid", "slots never written"
    plan = plans.create(q, pages, 0, [1], 100, 0)
    plans.start(plan)
    for call, *args in ((plans.set_sampler, 0), (plans.set_stop, [1], []), (plans.truncate, 0), (plans.resume,),
                        (plans.start,), (plans.set_drafter, 1, []), (plans.set_adapter, 0), (plans.set_grammar, 0)):
        assert code(call, plan, *args) == "invalid", call
    assert code(plans.set_stop, unread, [], [""]) == "invalid"
    assert code(plans.set_stop, unread, [], ["x" * 20000]) == "invalid"
    assert code(plans.set_drafter, unread, 1000, []) == "invalid"
    count, found = 0, "ok"
    while count < 10000 and found == "ok":
        found = code(plans.create, q, pages, 0, [1], 100, 0)
        count += 1
    assert (found, count < 300) == ("quota", True), (found, count)
    tokens = _host.plans.next(plan)
    _host.tickets.wait([tokens], -1)
    kv.free(pages)
    return "alive"
""",
    "hostile-plans",
)


def test_hostile_use_fails_by_itself(engine: Any) -> None:
    neighbour = engine.launch(GENERATE, prompt="12+7=", max_tokens=60)
    assert engine.launch(HOSTILE).result(timeout=60) == "alive"
    assert len(neighbour.result(timeout=60)) == 60


RUNS_AHEAD = program(
    """
from inferlet import Plan, kv, queue, session

async def main():
    q, pages = queue.create(), kv.alloc(60)
    plan = Plan(q, pages, 0, [1], 900)
    plan.start()
    session.send("running")
    while True:
        await plan.next()
""",
    "runs-ahead",
)


def test_killing_a_program_ends_its_plan_and_returns_its_pages(engine: Any) -> None:
    process = engine.launch(RUNS_AHEAD)
    next(iter(process))
    process.kill()
    with pytest.raises(PierayError):
        process.result(timeout=30)
    assert_pages_return(engine)


def test_plans_of_many_programs_leave_together(engine: Any) -> None:
    """Half of them are killed in the middle; the others get all their tokens."""
    processes = [engine.launch(GENERATE, prompt=f"{i}+1=", max_tokens=80) for i in range(16)]
    time.sleep(0.2)
    enders = [threading.Thread(target=process.kill) for process in processes[::2]]
    for ender in enders:
        ender.start()
    assert [len(process.result(timeout=60)) for process in processes[1::2]] == [80] * 8
    for ender in enders:
        ender.join()


CROWD = program(
    """
import asyncio
from inferlet import Context, InvalidRequest, runtime

async def one(number, max_tokens):
    async with Context(f"{number}+7=") as ctx:
        generation = ctx.generate(max_tokens, stop_tokens=())
        await generation
        return generation.tokens, generation.is_plan

async def main(number, max_tokens):
    found = await asyncio.gather(*(one(i, max_tokens) for i in range(number)))
    alone = await one(number - 1, max_tokens)
    return [alone[0] == found[-1][0], sorted({is_plan for _, is_plan in found}), runtime.limits()["limits"]["plans"]]
""",
    "crowd",
)


def test_more_generations_at_once_than_plans_queue_for_them(engine: Any) -> None:
    assert engine.launch(CROWD, number=257, max_tokens=3).result(timeout=200) == [True, [True], 256]
    assert engine.launch(CROWD, number=9, max_tokens=12, limits={"plans": 2}).result(timeout=60) == [True, [True], 2]
    assert engine.launch(CROWD, number=3, max_tokens=5, limits={"plans": 0}).result(timeout=60) == [True, [False], 0]
    assert_pages_return(engine)


UNKNOWN_TOKEN = program(
    """
from inferlet import Context, InvalidRequest, Sampler

async def main():
    async with Context([1, 2**31]) as ctx:
        try:
            await ctx.generate(5, sampler=Sampler(seed=1))
        except InvalidRequest as error:
            return str(error)
""",
    "unknown-token",
)


def test_a_token_out_of_the_vocabulary_is_an_invalid_request(engine: Any) -> None:
    assert "token ids are below" in engine.launch(UNKNOWN_TOKEN).result(timeout=60)
