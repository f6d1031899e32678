"""Claim: beside a flood of another inferlet, who decodes keeps half of its speed, in CPU time of the stepping thread.

What `neighbours.py` and the priorities of `pressure.py` measure on a whole engine, without the machine's noise: a
BatcherCore and the real runner in this process, on a clock that counts this thread's CPU time alone.  The one that
decodes is measured beside a flood and alone, in turns of `--steps` tokens, each of five times; figures are of all of
them.  `moved` is by how much the gaps' p99 has grown, in mean gaps alone.  `priority`: a program of 16 and 32 tokens of
a higher priority, alone and beside 24 others of its tenant, from its launch to its last token; ratios of p50 and p99.

    python bench/shares.py [--model pie-tiny 5m 82m] [--only masks plans] [--steps 200]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import machine
from peers.models import SHAPES, make_model

from pieray.assets import model_folder
from pieray.messages import GREEDY, Forward, Message, OpenInferlet, PlanTokens, RunEnded, Sample, Sampler, StartPlan
from pieray.model_settings import ModelSettings
from pieray.models.runner import ModelRunner
from pieray.models.tokenizer import TokenizerSpec
from pieray.sched.calibration import calibrate
from pieray.sched.core import BatcherCore
from pieray.sched.costs import CostModel
from pieray.urgency import command_priority

TOKENS = (5 + np.arange(1000) % 600).astype("<u4").tobytes()
VICTIM, FLOOD = 1, 2
TURNS, WARM_UP = 5, 1.5
SHARE, MOVED, PRIORITY = 0.5, 3.0, 2.0
DRAWN = Sampler(temperature=1.0, top_k=50, top_p=0.9)
BIASED = Sampler(
    temperature=1.0, top_p=0.9, bias_tokens=np.arange(600, dtype="<u4").tobytes(), bias_values=b"\0" * 2400
)


class Rig:
    """A core, with an inferlet that floods it if `attack` says with what."""

    def __init__(self, runner: ModelRunner, spec: TokenizerSpec, attack: Callable[[Rig], list[Message]], tenant: str):
        costs = CostModel(runner.config.vocab_size, runner.config.hidden_size)
        calibrate(runner, ModelSettings(), spec, costs, budget_s=1.0, clock=time.thread_time)
        self.core = BatcherCore(runner, ModelSettings(), time.thread_time, spec, costs)
        self.core.plans.vocab_size = runner.config.vocab_size
        self.attack, self.number = attack, 0
        self.queues: dict[int, int] = {}  # of tickets that are not answered
        self.beside_s = 0.0  # that the flood itself has taken
        self.say(OpenInferlet(VICTIM, "one"), OpenInferlet(FLOOD, tenant))

    def say(self, *messages: Message) -> None:
        assert not self.core.submit("p", messages, time.thread_time())

    def ticket(self, inferlet: int) -> int:
        self.number += 1
        return inferlet << 32 | self.number

    def plan(self, inferlet: int, queue: int, length: int, drawn: int, priority: int = 0) -> StartPlan:
        at = 64 * queue
        pages = np.arange(at, at + (length + drawn) // 16 + 1, dtype="<u4").tobytes()
        head = self.ticket(inferlet), inferlet, queue, priority, pages, 0, TOKENS[: 4 * length], drawn
        return StartPlan(*head, GREEDY, b"", [], [], 0, 0, b"", b"", False, b"")

    def forward(self, length: int, sampler: Sampler | None = None, *, queue: int = 1, mask: bytes = b"") -> Forward:
        outputs = [Sample(row, sampler, self.ticket(FLOOD)) for row in range(0 if sampler is None else length)]
        pages = np.arange(64 * queue, 64 * queue + 64, dtype="<u4").tobytes()
        tokens = TOKENS[: 4 * length]
        return Forward(self.ticket(FLOOD), FLOOD, queue, 0, pages, 0, tokens, b"", mask, outputs)

    def step(self) -> tuple[set[int], set[int]]:
        """Tickets of plans that have drawn, and of those that have ended."""
        began = time.thread_time()
        for message in self.attack(self):
            self.queues[message.ticket] = message.queue
            self.say(message)
        self.beside_s += time.thread_time() - began
        answers = [message for _, message in self.core.step(time.thread_time())]
        self.core.sent()
        for message in answers:
            self.queues.pop(getattr(message, "ticket", 0), None)
        drawn = {row.ticket for message in answers if isinstance(message, PlanTokens) for row in message.rows()}
        return drawn, {message.ticket for message in answers if isinstance(message, RunEnded)}

    def gaps(self, count: int) -> list[float]:
        """Seconds from each of the victim's tokens to the next."""
        found: list[float] = []
        last = ticket = 0.0
        while len(found) < count:
            if not ticket:
                self.say(plan := self.plan(VICTIM, 0, 20, 980))
                ticket, last = plan.ticket, 0.0
            drawn, ended = self.step()
            now = time.thread_time() - self.beside_s
            if ticket in drawn:
                found += [now - last] if last else []
                last = now
            ticket = 0 if ticket in ended else ticket
        return found


def again(*floods: Callable[[Rig], Forward]) -> Callable[[Rig], list[Message]]:
    """As soon as all are answered."""
    return lambda rig: [] if rig.queues else [flood(rig) for flood in floods]


def plans(rig: Rig) -> list[Message]:
    busy = set(rig.queues.values())
    return [rig.plan(FLOOD, queue, 100, 200) for queue in range(1, 65) if queue not in busy]


FLOODS: dict[str, Callable[[Rig], list[Message]]] = {
    "one-token": again(lambda rig: rig.forward(1)),
    "masks": again(lambda rig: rig.forward(1000, mask=b"\xff" * 125_000)),
    "plans": plans,
    "samples": again(lambda rig: rig.forward(800, DRAWN)),
    "samples-biased": again(lambda rig: rig.forward(800, BIASED)),
    "prefills": again(*[lambda rig, queue=queue: rig.forward(1000, queue=queue) for queue in range(1, 21)]),
}


def beside(alone: Rig, flooded: Rig, steps: int) -> dict[str, Any]:
    rigs = alone, flooded
    for rig in rigs:
        rig.gaps(int(WARM_UP * steps))
    pairs = [[rig.gaps(steps) for rig in rigs] for _ in range(TURNS)]
    quiet, loud = (np.concatenate([pair[side] for pair in pairs]) * 1e3 for side in (0, 1))
    moved = (np.quantile(loud, 0.99) - np.quantile(quiet, 0.99)) / quiet.mean()
    share = quiet.mean() / loud.mean()
    return {
        "alone_ms": [round(float(value), 3) for value in (quiet.mean(), np.quantile(quiet, 0.99))],
        "beside_ms": [round(float(value), 3) for value in (loud.mean(), np.quantile(loud, 0.99))],
        "share": round(float(share), 2),
        "p99_moved_steps": round(float(moved), 1),
        "ok": bool(share >= SHARE and moved <= MOVED),
    }


def urgent_seconds(rig: Rig, num_others: int, count: int) -> list[float]:
    found: list[float] = []
    others: dict[int, int] = {}
    inferlet, ticket, began = 100, 0, 0.0
    while len(found) < count:
        for place in set(range(1, num_others + 1)).difference(others.values()):
            inferlet += 1
            plan = rig.plan(inferlet, place, 64, 64)
            rig.say(OpenInferlet(inferlet, "one"), plan)
            others[plan.ticket] = place
        if not ticket:
            inferlet += 1
            plan = dataclasses.replace(rig.plan(inferlet, 0, 16, 32), priority=command_priority(50, 0))
            began, ticket = time.thread_time(), plan.ticket
            rig.say(OpenInferlet(inferlet, "one"), plan)
        ended = rig.step()[1]
        for one in ended:
            others.pop(one, None)
        if ticket in ended:
            found.append(time.thread_time() - began)
            ticket = 0
    return found[5:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["pie-tiny"], help=f"pie-tiny, {', '.join(SHAPES)}")
    parser.add_argument("--only", nargs="+", choices=[*FLOODS, "priority"], default=[*FLOODS, "priority"])
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    for model in given.model:
        with tempfile.TemporaryDirectory() as work:
            folder = make_model(model, Path(work)) if model in SHAPES else model_folder(model)
            dtype = "bfloat16" if model in SHAPES else "float32"
            load = ModelRunner.load(folder, device="cpu", dtype=dtype, num_pages=4224, threads=1)
            measure(load, TokenizerSpec.from_folder(folder), model, given.only, given.steps)


def measure(runner: ModelRunner, spec: TokenizerSpec, model: str, names: Sequence[str], steps: int) -> None:
    about = {"claim": "shares", "model": model, "machine": machine()}
    for name in names:
        if name == "priority":
            sides = [urgent_seconds(Rig(runner, spec, lambda _: [], "one"), num, steps // 4 + 5) for num in (0, 24)]
            p50, p99 = (float(np.quantile(sides[1], part) / np.quantile(sides[0], part)) for part in (0.5, 0.99))
            row: dict[str, Any] = {"p50_ratio": round(p50, 2), "p99_ratio": round(p99, 2), "ok": p99 <= PRIORITY}
            print(json.dumps({**about, "row": name, **row}), flush=True)
            continue
        for tenant in "one", "other":
            rigs = [Rig(runner, spec, flood, tenant) for flood in (lambda _: [], FLOODS[name])]
            row = beside(rigs[0], rigs[1], steps)
            print(json.dumps({**about, "row": name, "tenants": 1 if tenant == "one" else 2, **row}), flush=True)


if __name__ == "__main__":
    main()
