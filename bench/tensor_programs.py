"""What tensor programs cost, and what they save, on the embedded model's real Batcher core, in this process.

* A step of n plans: plain rows, plain plans that are commands (with a hidden slot, as programs make them), a sampler
  (top-n-sigma), a logits processor with a state over the vocabulary, a steering vector, Quest; ms a step, and us a row
  over plain commands.
* Quest over a long text: pages and bytes of keys and values that attention reads for a token, of those held.

    python bench/tensor_programs.py [--rows 1 8 32] [--steps 60] [--rounds 5]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import machine

from pieray.assets import model_folder
from pieray.guest import GUEST_ROOT
from pieray.messages import GREEDY, LoadProgram, Sampler, StartPlan
from pieray.model_settings import ModelSettings
from pieray.models.kv_pool import KvPool
from pieray.models.runner import ModelRunner
from pieray.sched.core import BatcherCore

sys.path.insert(0, str(GUEST_ROOT))

from inferlet import _host, tensor

PAGE, PAGES, PROMPT = 16, 64, 64
BOUNDS = [256, 4 << 20, 64_000_000]


def written(make: Any) -> str:
    """The code of a program as the SDK writes it."""
    codes: list[str] = []
    _host.install(SimpleNamespace(programs=SimpleNamespace(create=lambda code, _: codes.append(code) or 1)))
    make()
    return codes[0]


def counted(seen: Any, token: Any) -> dict[str, Any]:
    return {"seen": seen.scatter_add(token, 1.0)}


MAKE: dict[str, Any] = {
    "sampler": lambda: tensor.draw(
        lambda logits: tensor.where(logits >= logits.max() - logits.std(), logits, -tensor.inf)
    ),
    "processor": lambda: tensor.logits(lambda logits, seen: logits - 0.1 * seen, states={"seen": "V"}, update=counted),
    "steering": lambda: tensor.steer([0.01] * 192, 3),
    "quest": lambda: tensor.quest(2, range(2, 6)),
}


class Bench:
    """A core with plans of one kind."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.core = BatcherCore(runner, ModelSettings(page_size=PAGE))
        self.ticket = itertools.count(1)

    def start(self, kind: str, num_rows: int, prompt: int = PROMPT) -> None:
        for row in range(num_rows):
            sampler, programs, visible = GREEDY, [], b""
            if kind in MAKE:
                code = written(MAKE[kind]).encode()
                self.core.submit("p", [LoadProgram(next(self.ticket), row, 1, code, BOUNDS, [])], 0.0)
                programs = [1] if kind in ("steering", "quest") else []
            if kind == "sampler":
                sampler = Sampler(1.0, seed=row, program=1)
            elif kind == "processor":
                sampler = Sampler(processor=1)
            tokens = (np.arange(prompt) * (row + 3) % 600 + 20).astype("<u4")
            kv_len = 0
            if kind == "commands":  # the page before it is seen but for one slot: a mask makes it a command
                visible = b"\xfe\xff"
                kv_len = PAGE
            pages = np.arange(row * PAGES, (row + 1) * PAGES, dtype="<u4").tobytes()
            plan = StartPlan(
                row << 32 | next(self.ticket), row, 1, 0, pages, kv_len, tokens.tobytes(), PAGES * PAGE - prompt - PAGE,
                sampler, b"", [], [], 0, 0, b"", b"", False, visible, programs,
            )  # fmt: skip
            self.core.submit("p", [plan], 0.0)
        for _ in range(30):
            self.core.step(0.0)
            self.core.sent()

    def ms(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            self.core.step(0.0)
            self.core.sent()
        return 1e3 * (time.perf_counter() - began) / steps

    def close(self) -> None:
        self.core.drop_peer("p")


def steps_of(runner: ModelRunner, num_rows: int, steps: int, rounds: int) -> dict[str, float]:
    """ms a step by kind: medians, the kinds in turns."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for kind in ("rows", "commands", *MAKE):
            bench = Bench(runner)
            bench.start(kind, num_rows)
            found.setdefault(kind, []).append(bench.ms(steps))
            bench.close()
    return {kind: statistics.median(values) for kind, values in found.items()}


def saved(runner: ModelRunner, length: int) -> dict[str, float]:
    """What attention reads for a token behind a long text, with Quest and without."""
    bench = Bench(runner)
    bench.start("quest", 1, length)
    bench.ms(20)
    (instance,) = bench.core._programs._own["p", 0].values()
    counts = instance.counts  # type: ignore[union-attr]
    page = KvPool.page_nbytes(runner.config, PAGE, torch.float32) // runner.config.num_layers
    bench.close()
    rows = counts["rows"] / 4  # of four layers each
    plain = 2 * counts["pages_held"] / 4  # of the two layers that read all
    return {
        "tokens": length,
        "pages_held": counts["pages_held"],
        "pages_read": counts["pages_read"],
        "kib_a_token_full": (counts["pages_held"] + plain) * page / rows / 1024,
        "kib_a_token_quest": (counts["pages_read"] + plain) * page / rows / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    runner = ModelRunner.load(model_folder("pie-tiny"), num_pages=max(given.rows) * PAGES, page_size=PAGE)
    print(json.dumps({"machine": machine()}))
    for num_rows in given.rows:
        found = steps_of(runner, num_rows, given.steps, given.rounds)
        extra = {kind: round(1e3 * (found[kind] - found["commands"]) / num_rows) for kind in MAKE}
        shown = {kind: round(ms, 3) for kind, ms in found.items()}
        print(json.dumps({"rows": num_rows, "ms_a_step": shown, "us_a_row_over_commands": extra}))
    for length in (128, 512, 900):
        print(json.dumps({name: round(value, 1) for name, value in saved(runner, length).items()}))


if __name__ == "__main__":
    main()
