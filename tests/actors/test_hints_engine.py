"""Hints on a running engine whose pool is too small: idle programs give way, go on, and say what they would have."""

from __future__ import annotations

import asyncio
from typing import Any

from programs import program

import pieray

TALK = program(
    """
from inferlet import Context, session
async def main(tokens, says, pin=False):
    async with Context(tokens, reuse=False) as ctx:
        if pin:
            ctx.pin()
        first = ctx.generate(100, stop_tokens=())
        await first
        session.send("ready")
        if says == "idle":
            ctx.idle()
        await session.receive()
        ctx.expect(tokens=100)
        second = ctx.generate(100, stop_tokens=())
        await second
        return first.tokens + second.tokens
""",
    "talk",
)
FILL = program(
    """
from inferlet import Context
async def main(tokens, count):
    async with Context(tokens, reuse=False) as ctx:
        generation = ctx.generate(count, stop_tokens=())
        await generation
        return generation.tokens
""",
    "fill",
)
NUM_PAGES = 40  # of 16 tokens
PROMPT = [3 + i * 7 % 200 for i in range(200)]


def talk(engine: Any, others: int, **options: Any) -> tuple[list[int], int]:
    """What it says with so many programs that need most of the pool while it waits; the pages that it gave up."""
    process = engine.launch(TALK, tokens=PROMPT, **options)
    assert next(iter(process)).text == "ready"
    for _ in range(others):
        assert len(engine.launch(FILL, tokens=PROMPT, count=300).result(120)) == 300
    swapped = process.usage()["pages_swapped"]
    process.send("go on")
    said = process.result(120)
    used = asyncio.run(process.ausage())
    assert (used["tokens_computed"], used["tokens_found"]) == (399, 0)  # the last token is not run
    assert used["pages_swapped"] >= swapped
    return said, swapped


def test_an_idle_program_gives_way_while_it_waits_and_goes_on_as_if_nothing_had_been(ray_cluster: None) -> None:
    with pieray.start(namespace="hints", model={"num_pages": NUM_PAGES}) as engine:
        alone, swapped = talk(engine, 0, says="")
        assert (len(alone), swapped) == (200, 0)
        for says in ("idle", ""):
            said, swapped = talk(engine, 2, says=says)
            assert said == alone
            assert swapped >= 300 // 16  # all that it had
