"""Claim: on a CPU weights of int8 decode faster than those of bfloat16.

Tokens a second of one thread of the bare decoder (`ModelRunner.decode`), prompts of 128 random tokens included, 64
tokens out, greedily, at 1, 8 and 32 sequences at once, of the models of `bench/peers/models.py`: with weights as they
are stored, bfloat16, and with what `model.quantization` and `model.kv_dtype` make of them.  Rounds go in turns; figures
are medians, `prefill` is prompt tokens a second at 32 sequences.  `ratio` is int8 over bfloat16.

    python bench/quantized.py [--models 5m 82m] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from peers.models import make_model, make_prompts

from pieray.messages import Sample, Sampler
from pieray.models.batch import DecodeRows, ForwardItem
from pieray.models.runner import ModelRunner
from pieray.models.sampler import choices_of

PROMPT, TOKENS, PAGE, STEP, LEVELS = 128, 64, 16, 2048, (1, 8, 32)
PER_ROW = (PROMPT + TOKENS) // PAGE + 1
WAYS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "int8": {"quantization": "int8"},
    "fp8": {"quantization": "fp8"},
    "int8, fp8 pages": {"quantization": "int8", "kv_dtype": "fp8"},
}


def generate(runner: ModelRunner, prompts: list[list[int]]) -> tuple[float, float]:
    """Seconds of the prompts, and of all."""
    began, count = time.perf_counter(), len(prompts)
    pages = np.arange(count * PER_ROW, dtype=np.uint32).reshape(count, -1)
    positions, firsts = np.arange(PROMPT, dtype=np.uint32), []
    for at in range(0, count, STEP // PROMPT):
        part = range(at, min(at + STEP // PROMPT, count))
        items = [ForwardItem(pages[row], 0, np.array(prompts[row], np.uint32), positions) for row in part]
        firsts += [one[0] for one in runner.step(items, [[Sample(-1, Sampler())] for _ in items])]  # type: ignore[index]
    prefilled = time.perf_counter() - began
    kv_lens = np.full(count, PROMPT)
    choices = choices_of([Sampler()] * count, kv_lens.tolist())
    rows = DecodeRows(np.array(firsts, np.uint32), kv_lens.copy(), kv_lens, pages, choices)
    for _ in range(TOKENS - 1):
        rows.tokens[:] = runner.decode(rows, [], [])[0].tokens
        rows.positions[:] += 1
        rows.kv_lens[:] += 1
        rows.choices["counter"] += np.uint64(1)
    return prefilled, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["5m", "82m"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("build/peers/models"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures, ratios = {}, []
    for name in options.models:
        folder = make_model(name, options.folder)
        runners = {
            way: ModelRunner.load(folder, dtype="bfloat16", num_pages=max(LEVELS) * PER_ROW, threads=1, **settings)
            for way, settings in WAYS.items()
        }
        took: dict[tuple[str, int], list[tuple[float, float]]] = {(w, n): [] for w in WAYS for n in LEVELS}
        for number in range(options.rounds + 1):
            for level in LEVELS:
                _, prompts = make_prompts(level, PROMPT, number)
                for way, runner in runners.items():
                    found = generate(runner, prompts)
                    if number:  # the first is to warm up
                        took[way, level].append(found)
        for way in WAYS:
            seconds = {level: statistics.median(all_s for _, all_s in took[way, level]) for level in LEVELS}
            first = statistics.median(prompts_s for prompts_s, _ in took[way, LEVELS[-1]])
            figures[f"{name} {way}"] = {
                **{str(level): round(level * TOKENS / s) for level, s in seconds.items()},
                "prefill": round(LEVELS[-1] * PROMPT / first),
            }
            print(name, way, figures[f"{name} {way}"], flush=True)
        ratios += [figures[f"{name} int8"][str(n)] / figures[f"{name} bfloat16"][str(n)] for n in LEVELS]
    print(
        json.dumps(
            {
                "claim": "on a CPU weights of int8 decode faster than those of bfloat16, tokens a second of one thread",
                "figures": figures,
                "ratio": round(min(ratios), 2),
                "target": "above 1 at each width",
                "ok": min(ratios) > 1,
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
