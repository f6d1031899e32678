"""One inferlet whose contexts are several times the pool, on a running engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from programs import program

import pieray

TURNS = program(
    """
import asyncio
from inferlet import Context
async def main(prompts, turns, together):
    contexts = [Context(prompt, reuse=False) for prompt in prompts]
    said = [[] for _ in contexts]
    async def go(number):
        generation = contexts[number].generate(20, stop_tokens=())
        await generation
        said[number] += generation.tokens
    for _ in range(turns):
        if together:
            await asyncio.gather(*map(go, range(len(contexts))))
        else:
            for number in range(len(contexts)):
                await go(number)
    return said
""",
    "turns",
)
TOO_LONG = program(
    """
from inferlet import Context
async def main(tokens):
    idle = Context(tokens[:100])
    await idle.generate(20, stop_tokens=())
    try:
        await Context(tokens).generate(20, stop_tokens=())
    except Exception as error:
        return str(error)
""",
    "too_long",
)
PROMPTS = [[3 + (i * 7 + number) % 200 for i in range(150)] for number in range(6)]


def started(num_pages: int, swap_memory_bytes: int = 0) -> pieray.Engine:
    model = {"num_pages": num_pages, "swap_memory_bytes": swap_memory_bytes}
    return pieray.start(namespace=f"own{num_pages}-{swap_memory_bytes}", model=model)


def said(engine: pieray.Engine, *, together: bool) -> tuple[Any, int]:
    """What the contexts say, and pages that were swapped."""
    process = engine.launch(TURNS, prompts=PROMPTS, turns=3, together=together)
    return process.result(120), asyncio.run(process.ausage())["pages_swapped"]


@pytest.fixture(scope="module")
def expected(ray_cluster: None) -> Any:
    with started(200) as engine:
        texts, swapped = said(engine, together=False)
    assert swapped == 0
    return texts


@pytest.mark.parametrize("swap_memory_bytes", [64 << 20, 0])
def test_contexts_that_fill_the_pool_several_times_say_what_they_would_on_a_large_one(
    expected: Any, swap_memory_bytes: int
) -> None:
    with started(20, swap_memory_bytes) as engine:
        for together in (False, True):
            found, swapped = said(engine, together=together)
            assert found == expected
            assert (swapped > 40) == (swap_memory_bytes > 0)
        too_long = engine.launch(TOO_LONG, tokens=[5] * 500)
        assert "the pool has 20 pages" in too_long.result(60)
        assert too_long.usage()["pages_swapped"] == 0
