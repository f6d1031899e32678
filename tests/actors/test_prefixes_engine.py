"""Lookup before compute on a running engine: the same texts from fewer tokens, and no page that is missed."""

from __future__ import annotations

from typing import Any

from engines import assert_pages_return, run
from programs import program

import pieray
from pieray.errors import OutOfPages

GENERATE = program(
    """
from inferlet import Context
async def main(tokens, max_tokens=20, fork=False, reuse=True):
    ctx = Context(tokens, reuse=reuse)
    if fork:
        await ctx.flush()
        ctx = ctx.fork()
    generation = ctx.generate(max_tokens, stop_tokens=())
    await generation
    return generation.tokens
""",
    "generate-tokens",
)
USAGE = program(
    """
from inferlet import Context, runtime
async def main(tokens):
    async with Context(tokens) as ctx:
        await ctx.generate(20, stop_tokens=())
    return runtime.usage()
""",
    "usage",
)
PASSES = program(
    """
from inferlet import forward, kv, queue
async def main(tokens, max_tokens=20):
    q, pages = queue.create(), kv.alloc(-(-(len(tokens) + max_tokens) // kv.page_size()))
    kv_len, ids = 0, []
    while len(ids) < max_tokens:
        (token,) = await forward.forward(q, pages, kv_len, tokens).sample(-1)
        kv_len += len(tokens)
        tokens = [token]
        ids.append(token)
    return ids
""",
    "by-passes",
)
EXPORT = program(
    """
from inferlet import forward, kv, queue
async def main(name, tokens):
    pages = kv.alloc(-(-len(tokens) // kv.page_size()))
    await forward.forward(queue.create(), pages, 0, tokens)
    await kv.export_pages(name, pages, len(tokens))
""",
    "export-tokens",
)
OPEN = program(
    """
from inferlet import forward, kv, queue
async def main(name, tokens):
    opened = await kv.import_pages(name)
    pages = [*opened.pages, *kv.alloc(1)]
    (token,) = await forward.forward(queue.create(), pages, opened.num_tokens, tokens).sample(-1)
    return token
""",
    "open-tokens",
)


def prompt(seed: int, length: int = 100) -> list[int]:
    return [3 + (seed * 7919 + i * i * 31 + i) % 200 for i in range(length)]


def usage(engine: Any, name: str) -> list[tuple[int, int]]:
    """Tokens computed and found by the inferlets of a name, oldest first."""
    rows = sorted((r for r in engine.ps() if r["name"] == name), key=lambda r: r["started_at"])
    return [(row["tokens_computed"], row["tokens_found"]) for row in rows]


def last(engine: Any, name: str) -> tuple[int, int]:
    return usage(engine, name)[-1]


def pages(engine: Any) -> dict[str, Any]:
    (found,) = [a for a in engine.status()["actors"] if a["role"] == "resource-manager"]
    return dict(found)


def test_the_second_launch_of_a_prompt_computes_only_the_rest_and_gives_the_same_text(engine: Any) -> None:
    text = run(engine, GENERATE, tokens=prompt(1))
    assert last(engine, "generate-tokens") == (119, 0)
    assert run(engine, GENERATE, tokens=prompt(1)) == text
    assert last(engine, "generate-tokens") == (119 - 96, 96)
    assert run(engine, PASSES, tokens=prompt(1)) == text
    assert last(engine, "by-passes") == (119 - 96, 96)
    assert run(engine, GENERATE, tokens=prompt(1), fork=True) == text
    assert last(engine, "generate-tokens") == (119 - 96, 96)
    assert run(engine, GENERATE, tokens=prompt(1), reuse=False) == text
    assert last(engine, "generate-tokens") == (119, 0)
    assert run(engine, USAGE, tokens=prompt(1)) == {"tokens_computed": 119 - 96, "tokens_found": 96, "pages_swapped": 0}


def test_the_next_turn_of_a_conversation_finds_the_text_of_the_last(engine: Any) -> None:
    line = prompt(2, 70)
    for turn in range(4):
        line += run(engine, PASSES if turn % 2 else GENERATE, tokens=line, max_tokens=30)
        line += prompt(3 + turn, 5)
    assert last(engine, "by-passes")[1] >= 70 + 3 * 35 - 5 - 2 * 16
    with pieray.start(namespace="no-reuse", prefix_cache=False) as plain:
        again = prompt(2, 70)
        for turn in range(4):
            again += run(plain, GENERATE, tokens=again, max_tokens=30)
            again += prompt(3 + turn, 5)
        assert again == line
        assert {found for _, found in usage(plain, "generate-tokens")} == {0}
        assert pages(plain)["cached"] == 0


def test_another_tenant_finds_nothing_and_exports_live_beside_the_index(ray_cluster: None) -> None:
    with pieray.start(namespace="prefix-tenants", model={"num_pages": 64}) as engine:
        engine.tenant = "acme"
        run(engine, EXPORT, name="doc", tokens=prompt(5))
        run(engine, GENERATE, tokens=prompt(5))
        assert last(engine, "generate-tokens")[1] == 96
        token = run(engine, OPEN, name="doc", tokens=[9])
        assert run(engine, GENERATE, tokens=[*prompt(5), 9], max_tokens=1) == [token]
        engine.tenant = "other"
        run(engine, GENERATE, tokens=prompt(5))
        assert last(engine, "generate-tokens") == (119, 0)
        assert_pages_return(engine)


def test_pages_kept_for_reuse_make_no_lease_wait(ray_cluster: None) -> None:
    with pieray.start(namespace="prefix-pressure", model={"num_pages": 20}, limits={"page_wait_s": 1.0}) as engine:
        for seed in range(12):  # 8 pages each, of 20
            run(engine, GENERATE, tokens=prompt(seed), max_tokens=20)
            run(engine, GENERATE, tokens=prompt(seed, 250), max_tokens=20)
        assert_pages_return(engine)
        found = pages(engine)
        assert found["available"] == found["total"]
        assert found["cached"] > 10
        processes = [engine.launch(GENERATE, tokens=prompt(7), max_tokens=20) for _ in range(4)]
        texts = []
        for process in processes:
            try:
                texts.append(process.result(timeout=60))
            except OutOfPages:  # 8 pages each of 20, and the others go on
                continue
        assert texts
        assert all(text == texts[0] for text in texts)
        assert_pages_return(engine)


def test_the_batcher_has_host_memory_for_swapped_pages_and_tells_what_is_used(engine: Any) -> None:
    (batcher,) = [a for a in engine.status()["actors"] if a["role"] == "batcher"]
    swap = batcher["swap"]
    assert 0 < swap["slots"] <= 4 * pages(engine)["total"]
    assert swap["used"] <= swap["swapped_out"] - swap["swapped_in"]
