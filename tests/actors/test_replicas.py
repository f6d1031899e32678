"""A model on several device groups: programs compute on one each, and find what others have, wherever it is."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engines import assert_pages_return, run
from programs import program

import pieray
from pieray.errors import Denied, DeviceLost, InvalidRequest, NotFound, QuotaExceeded

GENERATE = program(
    """
from inferlet import Context, runtime
async def main(tokens, max_tokens=12):
    async with Context(tokens) as ctx:
        generation = ctx.generate(max_tokens, logprobs=True, stop_tokens=())
        await generation
        return [generation.tokens, generation.logprobs], runtime.usage()["tokens_computed"]
""",
    "generate-tokens",
)
HOLD = program(
    """
from inferlet import Context, session
async def main(tokens):
    async with Context(tokens) as ctx:
        await ctx.flush()
        session.send("there")
        await session.receive()
        generation = ctx.generate(12, stop_tokens=())
        await generation
        return generation.tokens
""",
    "hold",
)
LATER = program(
    """
from inferlet import Context, runtime, session
async def main(tokens):
    session.send("waiting")
    await session.receive()
    async with Context(tokens) as ctx:
        generation = ctx.generate(12, stop_tokens=())
        await generation
        return generation.tokens, runtime.usage()["tokens_computed"]
""",
    "later",
)
SAVE = program(
    """
from inferlet import Context, session
async def main(tokens, name, replace=False, access="owner"):
    async with Context(tokens) as ctx:
        await ctx.flush()
        session.send("computed")
        await session.receive()
        await ctx.save(name, replace=replace, access=access)
""",
    "save",
)
OPEN = program(
    """
from inferlet import Context, runtime, session
async def main(own, name):
    async with Context(own) as ctx:  # its group is that of these tokens
        await ctx.flush()
        session.send("computed")
        await session.receive()
    async with await Context.open(name) as there:
        generation = there.generate(12, logprobs=True, stop_tokens=())
        await generation
        return [generation.tokens, generation.logprobs], runtime.usage()["tokens_computed"]
""",
    "open",
)
LIST = program(
    """
from inferlet import Context, kv
async def main(delete=""):
    if delete:
        await Context.delete(delete)
    return [[one.name, one.num_tokens] for one in await kv.list_exports("")]
""",
    "list",
)
SEND = program(
    """
from inferlet import Context, messaging
async def main(tokens):
    async with Context(tokens) as ctx:
        await ctx.save("handed-over", replace=True)
        await messaging.push("names", "handed-over")
""",
    "send",
)
TAKE = program(
    """
from inferlet import Context, messaging
async def main(own):
    async with Context(own) as ctx:
        await ctx.flush()
        async with await Context.open(await messaging.pull("names")) as there:
            generation = there.generate(12, logprobs=True, stop_tokens=())
            await generation
            return [generation.tokens, generation.logprobs]
""",
    "take",
)

MESSAGING = {"messaging": True}


def tokens(seed: int, count: int = 100) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, 610) for _ in range(count)]


def actors(engine: Any, role: str) -> list[dict[str, Any]]:
    return sorted((a for a in engine.status()["actors"] if a["role"] == role), key=lambda a: a["name"])


def held(engine: Any) -> list[int]:
    """Programs' pages on each group."""
    return [pages["leased"] for pages in actors(engine, "resource-manager")]


def beside(engine: Any, source: Any, other: Any, users: tuple[str, str] = ("local", "local")) -> tuple[Any, Any]:
    """Two programs, each on a group of its own: launched one behind the other, for each computes before the next."""
    time.sleep(0.1)  # groups tell that those before have ended
    launched = []
    try:
        for (code, arguments), user in zip((source, other), users, strict=True):
            engine.user = user
            launched.append(engine.launch(code, arguments))
            assert next(iter(launched[-1])).text in ("there", "computed")
    finally:
        engine.user = "local"
    first, second = launched
    assert all(held(engine)), "each is on a group of its own"
    return first, second


@pytest.fixture(scope="module")
def two(ray_cluster: None) -> Iterator[Any]:
    settings = {"replicas": 2, "num_pages": 200}
    with pieray.start(namespace="replicas", model=settings, limits={"page_wait_s": 5.0}) as engine:
        yield engine
        assert_pages_return(engine)


@pytest.fixture(scope="module")
def alone(ray_cluster: None) -> Iterator[Any]:
    with pieray.start(namespace="replica-alone", model={"num_pages": 200}) as engine:
        yield engine


def test_texts_are_those_of_one_group_and_programs_are_spread(two: Any, alone: Any) -> None:
    assert two.models()[0]["replicas"] == 2
    holding = [two.launch(HOLD, tokens=tokens(seed)) for seed in range(8)]
    for one in holding:
        assert next(iter(one)).text == "there"
    assert max(held(two)) < 3 * min(held(two))
    for one in holding:
        one.send("go")
    expected = [run(alone, GENERATE, tokens=tokens(seed))[0][0] for seed in range(8)]
    assert [one.result(timeout=60) for one in holding] == expected


def test_a_prompt_is_computed_once_wherever_it_is_launched(two: Any) -> None:
    prompt = tokens(100)
    first, num_first = run(two, GENERATE, tokens=prompt)
    assert num_first >= len(prompt)
    time.sleep(0.1)  # the group tells of it
    again = [run(two, GENERATE, tokens=prompt) for _ in range(4)]
    assert all(one == first for one, _ in again)
    assert max(num for _, num in again) <= num_first - 64


def test_what_one_group_exports_is_opened_on_another(two: Any, alone: Any) -> None:
    prompt = tokens(200, 90)
    saver, opener = beside(
        two, (SAVE, {"tokens": prompt, "name": "far"}), (OPEN, {"own": tokens(201, 33), "name": "far"})
    )
    saver.send("go")
    saver.result(timeout=60)
    opener.send("go")
    found, num_computed = opener.result(timeout=60)
    expected, _ = run(alone, GENERATE, tokens=prompt)
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], abs=1e-5)
    assert num_computed < 60, "its pages were copied, not computed again"
    assert [name for name, _ in run(two, LIST)] == ["far"]
    assert [one["name"] for one in two.exports()] == ["far"]
    run(two, LIST, delete="far")
    with pytest.raises(NotFound, match="far"):
        run(two, LIST, delete="far")
    opener = two.launch(OPEN, own=tokens(202, 20), name="far")
    opener.send("go")
    with pytest.raises(NotFound, match="far"):
        opener.result(timeout=60)
    assert_pages_return(two)


def test_a_name_handed_over_is_found_at_once(two: Any, alone: Any) -> None:
    for seed in range(300, 306):
        blocking = two.launch(HOLD, tokens=tokens(seed + 50, 20))
        assert next(iter(blocking)).text == "there"
        taker = two.launch(TAKE, own=tokens(seed, 20), capabilities=MESSAGING)
        two.launch(SEND, tokens=tokens(seed, 70), capabilities=MESSAGING).result(timeout=60)
        assert taker.result(timeout=60)[0] == run(alone, GENERATE, tokens=tokens(seed, 70))[0][0]
        blocking.send("go")
        blocking.result(timeout=60)
    run(two, LIST, delete="handed-over")


def test_a_name_is_one_in_all_groups(two: Any) -> None:
    arguments = {"name": "one-name", "tokens": tokens(400)}
    first, second = beside(two, (SAVE, arguments), (SAVE, {**arguments, "tokens": tokens(401)}))
    first.send("go")
    first.result(timeout=60)
    time.sleep(0.1)  # the group tells of it
    second.send("go")
    with pytest.raises(InvalidRequest, match="one-name.*exists; replace it"):
        second.result(timeout=60)
    first, second = beside(
        two,
        (SAVE, {**arguments, "replace": True, "tokens": tokens(402, 20)}),
        (SAVE, {**arguments, "replace": True, "tokens": tokens(403, 50)}),
    )
    for one in (first, second):
        one.send("go")
        one.result(timeout=60)
        time.sleep(0.1)
    assert run(two, LIST) == [["one-name", 49]]  # the last token is not computed yet
    run(two, LIST, delete="one-name")
    assert_pages_return(two)


def test_another_users_name_is_not_replaced_from_another_group(two: Any) -> None:
    arguments = {"name": "annas", "replace": True, "access": "public"}
    first, second = beside(
        two,
        (SAVE, {**arguments, "tokens": tokens(420)}),
        (SAVE, {**arguments, "tokens": tokens(421)}),
        users=("anna", "bob"),
    )
    first.send("go")
    first.result(timeout=60)
    time.sleep(0.1)  # the group tells of it
    second.send("go")
    with pytest.raises(Denied, match="annas.*another user's"):
        second.result(timeout=60)
    assert [(one["name"], one["owner"]) for one in two.exports()] == [("annas", "anna")]
    two.drop_export("annas")
    assert_pages_return(two)


def test_a_program_that_first_waits_goes_where_its_prompt_is_too(two: Any) -> None:
    prompt = tokens(430)
    first, _ = run(two, GENERATE, tokens=prompt)
    time.sleep(0.1)  # the group tells of it
    waiting = [two.launch(LATER, tokens=prompt) for _ in range(4)]
    for one in waiting:
        assert next(iter(one)).text == "waiting"
        one.send("go")
        found, num_computed = one.result(timeout=60)
        assert found == first[0]
        assert num_computed < 50


def test_a_large_export_that_does_not_fit_here_leaves_nothing_behind(two: Any) -> None:
    saver, opener = beside(
        two, (SAVE, {"tokens": tokens(500, 800), "name": "large"}), (OPEN, {"own": tokens(501, 33), "name": "large"})
    )
    saver.send("go")
    saver.result(timeout=60)
    opener.kill("it is not needed")
    opener = two.launch(OPEN, {"own": tokens(502, 40), "name": "large"}, limits={"pages": 20})
    blocking = two.launch(HOLD, tokens=tokens(503, 20))
    opener.send("go")
    with pytest.raises(QuotaExceeded, match=r"limits\.pages is 20"):
        opener.result(timeout=60)
    blocking.send("go")
    blocking.result(timeout=60)
    run(two, LIST, delete="large")
    assert_pages_return(two)


def test_a_group_that_dies_fails_its_own_programs_alone(two: Any, alone: Any) -> None:
    first, second = beside(two, (HOLD, {"tokens": tokens(600)}), (HOLD, {"tokens": tokens(601)}))
    batchers = actors(two, "batcher")
    os.kill(batchers[0]["pid"], signal.SIGKILL)
    expected = {seed: run(alone, GENERATE, tokens=tokens(seed))[0][0] for seed in (600, 601, 602)}
    ends: list[Any] = []
    for one, seed in ((first, 600), (second, 601)):
        one.send("go")
        try:
            ends.append(one.result(timeout=60) == expected[seed])
        except DeviceLost:
            ends.append("lost")
    assert sorted(map(str, ends)) == ["True", "lost"]
    assert run(two, GENERATE, tokens=tokens(602))[0][0] == expected[602]  # while it is replaced
    deadline = time.monotonic() + 60
    while len(actors(two, "batcher")) < 2:
        assert time.monotonic() < deadline, two.status()
        time.sleep(0.1)
    assert actors(two, "batcher")[1]["pid"] == batchers[1]["pid"]
    holding = [two.launch(HOLD, tokens=tokens(610 + n)) for n in range(6)]
    for one in holding:
        assert next(iter(one)).text == "there"
    assert all(held(two))
    for one in holding:
        one.send("go")
        one.result(timeout=60)


def test_replicas_come_and_go_and_no_program_is_lost(ray_cluster: None, alone: Any) -> None:
    with pieray.start(namespace="scaled", model={"num_pages": 200}) as engine:
        early = engine.launch(HOLD, tokens=tokens(700))
        assert next(iter(early)).text == "there"
        assert engine.scale(2)[0]["replicas"] == 2
        late = [engine.launch(HOLD, tokens=tokens(701 + n)) for n in range(4)]
        for one in late:
            assert next(iter(one)).text == "there"
        assert all(held(engine)), held(engine)
        with ThreadPoolExecutor(1) as threads:
            scaling = threads.submit(engine.scale, 1)
            deadline = time.monotonic() + 20
            while held(engine)[1]:
                assert not scaling.done()
                assert run(engine, GENERATE, tokens=tokens(710))[0][0] == run(alone, GENERATE, tokens=tokens(710))[0][0]
                if time.monotonic() > deadline - 18:
                    for one in late:
                        one.send("go")
                    break
            assert scaling.result(timeout=60)[0]["replicas"] == 1
        texts = [one.result(timeout=60) for one in late]
        early.send("go")
        assert [early.result(timeout=60), *texts] == [
            run(alone, GENERATE, tokens=tokens(700 + n))[0][0] for n in range(5)
        ]
        assert len(actors(engine, "batcher")) == 1
        assert engine.status()["failure"] is None
        assert_pages_return(engine)
