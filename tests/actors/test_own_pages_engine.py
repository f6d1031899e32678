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


@pytest.mark.parametrize("swap_memory_bytes", [64 << 20, 0])
def test_contexts_that_fill_the_pool_several_times_say_what_they_would_on_a_large_one(
    ray_cluster: None, swap_memory_bytes: int
) -> None:
    def said(num_pages: int, together: bool) -> tuple[Any, int]:
        model = {"num_pages": num_pages, "swap_memory_bytes": swap_memory_bytes}
        with pieray.start(namespace=f"own{num_pages}", model=model) as engine:
            process = engine.launch(TURNS, prompts=PROMPTS, turns=3, together=together)
            found = process.result(120)
            swapped = asyncio.run(process.ausage())["pages_swapped"]
            if num_pages < 100:
                text = engine.launch(TOO_LONG, tokens=[5] * 500).result(60)
                assert f"the pool has {num_pages} pages" in text
                assert process.usage()["pages_swapped"] == swapped
            return found, swapped

    expected, swapped = said(200, False)
    assert swapped == 0
    for together in (False, True):
        found, swapped = said(20, together)
        assert found == expected
        assert (swapped > 40) == (swap_memory_bytes > 0)
