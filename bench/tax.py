"""The tax of programmability: what an output token costs through actors and wasm, against the bare decoder.

Four sides in one run, on one machine, with the same model, prompt, batch and number of tokens, greedy:

* bare: `ModelRunner.step` on a batch of n sequences, no actors, no wasm, in this process;
* plan: n `text-completion` inferlets on an engine, over sockets: `generate` runs as decode plans;
* socket: n inferlets that ask for a forward and a sample per token, messages over sockets;
* ray: the same with messages as plain Ray actor calls.

The figure is the time per output token of a sequence (milliseconds from token to token, median over
sequences and rounds), and what each side adds to the bare step.

    python bench/tax.py [--tokens 64] [--rounds 5] [--concurrency 1 8 32]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time

import numpy as np
from common import machine

import pieray
from pieray import ProgramSource
from pieray.assets import model_folder
from pieray.models.runner import ForwardItem, ModelRunner, Sample
from pieray.models.tokenizer import Tokenizer, TokenizerSpec

PROMPT = "Here is a list of words to sort: lemon apple cherry plum grape. "
TARGET_US = 1000.0
PASSES = """
from inferlet import forward, kv, model, queue, session

async def main(prompt, max_tokens, ignore_eos):
    tokens, kv_len = model.tokenize(prompt), 0
    line, pages = queue.create(), kv.alloc(-(-(len(tokens) + max_tokens) // kv.page_size()))
    stream = model.TextStream()
    for _ in range(max_tokens):
        ticket = forward.forward(line, pages, kv_len, tokens).sample(-1)
        kv_len += len(tokens)
        tokens = await ticket
        session.send(stream.push(tokens) or " ")
    return {"num_tokens": max_tokens}
"""
SIDES = {
    "plan": ("socket", "text-completion"),
    "socket": ("socket", ProgramSource("passes", "passes.py", source=PASSES)),
    "ray": ("ray", ProgramSource("passes", "passes.py", source=PASSES)),
}


def bare(concurrency: int, num_tokens: int, rounds: int) -> float:
    """Milliseconds per step of the decoder alone: one token for each of `concurrency` sequences."""
    folder = model_folder("pie-tiny")
    runner = ModelRunner.load(folder, device="cpu", dtype="float32", num_pages=2048, page_size=16, threads=1)
    prompt = np.array(Tokenizer(TokenizerSpec.from_folder(folder)).encode(PROMPT), np.uint32)
    per_sequence = -(-(len(prompt) + num_tokens) // 16)
    pages = np.arange(concurrency * per_sequence, dtype=np.uint32).reshape(concurrency, per_sequence)
    wanted = [[Sample(-1)]] * concurrency
    found = []
    for _ in range(rounds):
        steps = [(0, prompt)] * concurrency
        laps = []
        for _ in range(num_tokens):
            items = [
                ForwardItem(pages[i], kv_len, tokens, np.arange(kv_len, kv_len + len(tokens), dtype=np.uint32))
                for i, (kv_len, tokens) in enumerate(steps)
            ]
            began = time.perf_counter()
            results = runner.step(items, wanted)
            laps.append(time.perf_counter() - began)
            steps = [
                (kv_len + len(tokens), np.array(result, np.uint32))
                for (kv_len, tokens), result in zip(steps, results, strict=True)
            ]
        found.append(statistics.mean(laps[1:]))
    return statistics.median(found) * 1e3


def served(side: str, levels: list[int], num_tokens: int, rounds: int) -> dict[int, float]:
    """Milliseconds from token to token as a client sees them, by concurrency."""
    transport, program = SIDES[side]
    with pieray.start(namespace=f"tax-{side}", transport=transport) as engine:
        run(engine, program, 1, num_tokens)
        return {n: statistics.median(run(engine, program, n, num_tokens) for _ in range(rounds)) for n in levels}


def run(engine: pieray.Engine, program: str | ProgramSource, concurrency: int, num_tokens: int) -> float:
    """One round: all inferlets at once; the median over them of the mean time between tokens."""
    intervals = [0.0] * concurrency

    def one(index: int) -> None:
        process = engine.launch(program, prompt=PROMPT, max_tokens=num_tokens, ignore_eos=True)
        seen = [time.perf_counter() for _ in process]
        result = process.result(timeout=60)
        assert result["num_tokens"] == num_tokens, result
        intervals[index] = (seen[-1] - seen[0]) / (len(seen) - 1)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(intervals) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    levels = arguments.concurrency
    alone = {n: bare(n, arguments.tokens, arguments.rounds) for n in levels}
    sides = {side: served(side, levels, arguments.tokens, arguments.rounds) for side in SIDES}
    figures = {}
    for n in levels:
        row = {"bare_ms": round(alone[n], 3)}
        for name, times in sides.items():
            row[f"{name}_ms"] = round(times[n], 3)
            row[f"{name}_added_us"] = round((times[n] - alone[n]) * 1e3)
            row[f"{name}_added_us_per_token"] = round((times[n] - alone[n]) * 1e3 / n)
            row[f"{name}_ratio"] = round(times[n] / alone[n], 2)
        figures[n] = row
        sys.stdout.write(f"{n:3d} concurrent: {row}\n")
    worst = max(figures[n]["plan_added_us_per_token"] for n in levels)
    sys.stdout.write(
        json.dumps(
            {
                "claim": "a token through actors and wasm costs at most 1 ms more than the bare decoder's",
                "figures": figures,
                "ratio": figures[levels[0]]["plan_ratio"],
                "target": f"plan_added_us_per_token <= {TARGET_US:.0f}",
                "ok": worst <= TARGET_US,
                "machine": machine(),
            }
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
