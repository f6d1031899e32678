"""What lookup before compute is worth, as a client sees it.

* Time to the first token of a launch whose prompt of 1024 + 16 tokens begins with 1024 that nobody has computed (cold),
  or that an inferlet that has ended has (hit): from the call of `Engine.launch` to the first token's message, and, told
  by the guest, from its call of `generate`.  Cold and hit launches take turns on one engine; medians, and the range of
  the middle half.
* An agent of 20 turns, each an inferlet of its own that is given the whole conversation: 200 tokens come, 50 are drawn.
  Tokens computed over the least possible (each token of the conversation once), and the time of all turns, with reuse
  and without, which take turns too.  The texts are equal.

    python bench/prefix.py [--rounds 15] [--agents 3]

The model is the embedded one with room for 8192 tokens, on random ones: it says nonsense, and takes the same time.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import machine

import pieray
from pieray.assets import model_folder

PREFIX, SUFFIX, TURNS, COMES, DRAWN = 1024, 16, 20, 200, 50
HIT_OVER_COLD, COMPUTED_OVER_LEAST = 0.1, 1.05
SOURCE = """
from inferlet import Context, runtime, session
async def main(tokens, max_tokens, reuse=True):
    async with Context(tokens, reuse=reuse) as ctx:
        began = runtime.monotonic()
        generation = ctx.generate(max_tokens, stop_tokens=())
        first_s, said = 0.0, []
        async for token in generation:
            if not said:
                first_s = runtime.monotonic() - began
                session.send("first")
            said.append(token.id)
        return said, first_s, runtime.usage()
"""
PROGRAM = pieray.ProgramSource("prefix", "prefix.py", source=SOURCE)


def roomy_model(folder: Path) -> Path:
    """The embedded model, with room for 8192 tokens."""
    shutil.copytree(model_folder("pie-tiny"), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    return folder


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(10, 600) for _ in range(count)]


def first_token(engine: pieray.Engine, prompt: list[int]) -> tuple[float, float, int]:
    """Milliseconds to the first token for the client, and for the guest; tokens found."""
    began = time.perf_counter()
    process = engine.launch(PROGRAM, tokens=prompt, max_tokens=1)
    next(iter(process))
    took = time.perf_counter() - began
    _, first_s, usage = process.result(timeout=60)
    return took * 1e3, first_s * 1e3, usage["tokens_found"]


def agent(engine: pieray.Engine, seed: int, *, reuse: bool) -> tuple[list[int], float, float]:
    """The conversation; tokens computed over the least possible; seconds."""
    rng, line, computed = random.Random(seed), [], 0
    began = time.perf_counter()
    for _ in range(TURNS):
        line += tokens(rng, COMES)
        said, _, usage = engine.launch(PROGRAM, tokens=line, max_tokens=DRAWN, reuse=reuse).result(timeout=120)
        line += said
        computed += usage["tokens_computed"]
    return line, computed / (len(line) - 1), time.perf_counter() - began  # the last one drawn need not be run


def middle(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 2), "from": round(low, 2), "to": round(high, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--agents", type=int, default=3)
    given = parser.parse_args()
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        path = str(roomy_model(Path(folder)))
        with pieray.start(namespace="bench-prefix", model={"path": path, "num_pages": 4096}) as engine:
            shared = tokens(rng, PREFIX)
            for _ in range(3):  # guests are made ahead, caches are warm
                first_token(engine, [*shared, *tokens(rng, SUFFIX)])
                first_token(engine, tokens(rng, PREFIX + SUFFIX))
            cold: list[tuple[float, float, int]] = []
            hit: list[tuple[float, float, int]] = []
            for _ in range(given.rounds):
                cold.append(first_token(engine, tokens(rng, PREFIX + SUFFIX)))
                hit.append(first_token(engine, [*shared, *tokens(rng, SUFFIX)]))
            assert {found for _, _, found in cold} == {0}, "a cold prompt was found"
            assert {found for _, _, found in hit} == {PREFIX}, "a shared one was not"
            agents = {reuse: [] for reuse in (True, False)}
            for seed in range(given.agents):
                one, other = (agent(engine, 100 + seed, reuse=reuse) for reuse in (True, False))
                assert one[0] == other[0], "the texts differ"
                agents[True].append(one[1:])
                agents[False].append(other[1:])
    ratios = [h[0] / c[0] for c, h in zip(cold, hit, strict=True)]
    facts = {
        "claim": "prefix",
        **machine(),
        "hit_over_cold": middle(ratios),
        "target_hit_over_cold": HIT_OVER_COLD,
        "guest_hit_over_cold": middle([h[1] / c[1] for c, h in zip(cold, hit, strict=True)]),
        "cold_ms": middle([c[0] for c in cold]),
        "hit_ms": middle([h[0] for h in hit]),
        "guest_cold_ms": middle([c[1] for c in cold]),
        "guest_hit_ms": middle([h[1] for h in hit]),
        "computed_over_least": round(statistics.median(a[0] for a in agents[True]), 3),
        "target_computed_over_least": COMPUTED_OVER_LEAST,
        "computed_over_least_without": round(statistics.median(a[0] for a in agents[False]), 3),
        "agent_s": round(statistics.median(a[1] for a in agents[True]), 2),
        "agent_s_without": round(statistics.median(a[1] for a in agents[False]), 2),
    }
    print(json.dumps(facts))
    is_met = facts["hit_over_cold"]["median"] <= HIT_OVER_COLD and facts["computed_over_least"] <= COMPUTED_OVER_LEAST
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
