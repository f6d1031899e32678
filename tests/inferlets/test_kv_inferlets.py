"""The embedded inferlets that are about KV pages, on a running engine with pie-tiny."""

from __future__ import annotations

from typing import Any

from engines import run
from programs import program

PREFIX = "the quick brown fox jumps over the lazy dog, and so on, as 3+4=7, "

CLEAN = program(
    """
from inferlet import Context

async def main():
    for name in await Context.names("prefix-caching/"):
        await Context.delete(name)
""",
    "clean",
)

PLAIN = program(
    """
from inferlet import Context

async def main(prefix, prompt):
    async with Context(prefix) as ctx:
        ctx.append(prompt)
        return [await ctx.collect_text(16), ctx.position]
""",
    "plain",
)

WINDOW = program(
    """
from inferlet import forward, kv, model, queue

async def main(prompt, max_tokens, window, num_sinks):
    # The definition: a mask for every token, on the bare handlers.
    tokens = model.tokenize(prompt)
    size, line, stops = kv.page_size(), queue.create(), model.stop_tokens()
    pages = kv.alloc(-(-(len(tokens) + max_tokens) // size))
    forward.forward(line, pages, 0, tokens[:-1])
    for _ in range(max_tokens):
        last = len(tokens) - 1
        bits = [i < num_sinks or i >= last - window for i in range(last + 1)]
        mask = [sum(bit << k for k, bit in enumerate(bits[n:n + 32])) for n in range(0, len(bits), 32)]
        token = (await forward.forward(line, pages, last, tokens[-1:], mask=mask).sample())[0]
        tokens.append(token)
        if token in stops:
            break
    return tokens
""",
    "window",
)


def test_the_second_run_computes_only_what_follows_the_prefix(engine: Any) -> None:
    expected, position = run(engine, PLAIN, prefix=PREFIX, prompt="12+7=")
    first, second = (run(engine, "prefix-caching", prefix=PREFIX, prompt="12+7=", max_tokens=16) for _ in range(2))
    other = run(engine, "prefix-caching", prefix=PREFIX, prompt="20+31=", max_tokens=16)
    another = run(engine, "prefix-caching", prefix=PREFIX + "!", prompt="12+7=", max_tokens=16)
    run(engine, CLEAN)
    assert [first["text"], second["text"]] == [expected, expected]
    assert [r["is_cached"] for r in (first, second, other, another)] == [False, True, True, False]
    assert first["num_computed"] > 2 * second["num_computed"]
    assert position > first["num_computed"] > another["num_computed"] - 3
    assert other["text"] == run(engine, PLAIN, prefix=PREFIX, prompt="20+31=")[0]


def test_a_sliding_window_is_what_its_masks_say(engine: Any) -> None:
    texts = {}
    for window, num_sinks in ((8, 2), (12, 4), (500, 4)):
        result = run(engine, "attention-sink", prompt=PREFIX, max_tokens=24, window=window, num_sinks=num_sinks)
        expected = run(engine, WINDOW, prompt=PREFIX, max_tokens=24, window=window, num_sinks=num_sinks)
        assert result["tokens"] == expected
        texts[window] = result["text"]
        held = len(result["tokens"]) if window == 500 else 16 + window + 2 * 16
        assert result["num_pages"] <= -(-held // 16), "what has left the window takes no memory"
    assert texts[500] == run(engine, "text-completion", prompt=PREFIX, max_tokens=24)["text"]
    assert texts[8] != texts[500]
