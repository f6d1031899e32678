"""Claim: an inferlet that occupies what others need takes its share of it, and no more.

A victim decodes greedily, each token a text to its client.  Its tokens per second and the gaps between its tokens, as
the client sees them, are measured alone and beside one hostile inferlet on the same engine, in turns, for each way of
being hostile.  Texts that arrive together count as one: a gap is the time from one arrival to the next, from the first
token to the end of the window, so that a burst hides no gap.

The step is that of the decoder alone for one sequence (`bare_ms`).  A row is `ok` if its p99 gap grew by at most three
bare steps and the victim kept its share, half of what it had alone (less TOLERANCE, for the noise of the machine).

A bare step of pie-tiny takes less than the noise of most machines; `--model 5m` and `82m` are random Llama models whose
steps are what users have (`bench/peers/models.py`).  `--apart` gives the hostile inferlet a tenant of its own.

    python bench/neighbours.py [--seconds 3] [--rounds 1] [--only logits spinner] [--model 82m] [--apart] [--list]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from common import machine
from peers.models import SHAPES, make_model
from served import Peer

import pieray
from pieray import Process, ProgramSource
from pieray.errors import PierayError

STEPS = 3.0  # bare steps that a p99 may grow by
SHARE = 0.5
TOLERANCE = 0.1  # of the share
TOGETHER_S = 0.0002  # texts that arrive closer than that arrive together
WARM_UP_S = 0.5
PROMPT = "Here is a list of words to sort: lemon apple cherry plum grape. "

VICTIM = """
from inferlet import Context, session

async def main(prompt):
    while True:
        async with Context() as ctx:
            ctx.append(prompt)
            async for token in ctx.generate(900, stop_tokens=()):
                session.send(token.text or " ")
"""

PASSES = """
from inferlet import forward, kv, model, queue, session

async def main(prompt):
    tokens, line, page = model.tokenize(prompt), queue.create(), kv.page_size()
    while True:
        pages, kv_len, given = kv.alloc(-(-(len(tokens) + 900) // page)), 0, tokens
        for _ in range(900):
            ticket = forward.forward(line, pages, kv_len, given).sample(-1)
            kv_len += len(given)
            given = await ticket
            session.send("x")
        kv.free(pages)
"""

PRELUDE = """
import asyncio
from inferlet import Context, children, chat, embeds, forward, grammar, kv, model, plans, queue, runtime, session
from inferlet import Sampler

async def main():
    line = queue.create()
    pages = kv.alloc(-(-1000 // kv.page_size()))
    tokens = [5 + i % 600 for i in range(1000)]

    async def all_of(tickets):
        for ticket in tickets:
            await ticket

"""


def hostile(name: str, body: str) -> ProgramSource:
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    return ProgramSource(name, "hostile.py", source=PRELUDE + lines)


def outputs(call: str, rows: int, each: int = 1) -> str:
    """Passes of `rows` tokens, each row asked for `call`."""
    return f"""
while True:
    found = forward.forward(line, pages, 0, tokens[:{rows}])
    await all_of([{call} for row in range({rows}) for _ in range({each})])
"""


BODIES = {
    # host calls
    "tokenize": 'text = "tell me more, " * 18000\nwhile True: model.tokenize(text)',
    "detokenize": "many = tokens * 65\nwhile True: model.detokenize(many)",
    "render": """
text = "tell me more, " * 18000
while True: chat.render([{"role": "user", "content": text}])
""",
    "spinner": "while True: pass",
    "log-flood": """
while True:
    for _ in range(16): print("x" * 1000)
    await asyncio.sleep(0.05)
""",
    "sends": """
text = "x" * (4 << 20)
for _ in range(15):
    session.send(text)
    await asyncio.sleep(0.15)
while True: await asyncio.sleep(1)
""",
    "tickets": """
while True:
    try:
        while True: session._ask()
    except Exception:
        await asyncio.sleep(0)
""",
    # outputs of passes
    "logprobs-wide": """
wide = [i % 640 for i in range(16000)]
while True:
    found = forward.forward(line, pages, 0, tokens[:60])
    await all_of([found.logprobs(wide, row) for row in range(60)])
""",
    "logprobs-uneven": """
wide = [i % 640 for i in range(200_000)]
while True:
    found = forward.forward(line, pages, 0, tokens[:200])
    await all_of([found.logprobs(wide if row == 0 else [7], row) for row in range(200)])
""",
    "logprobs-one-row": """
wide = [i % 640 for i in range(100_000)]
while True:
    found = forward.forward(line, pages, 0, tokens[:1])
    await all_of([found.logprobs(wide, 0) for _ in range(10)])
""",
    "distributions": outputs("found.distribution(640, row)", 1000),
    "logits": outputs("found.logits(row)", 1000),
    "entropies": outputs("found.entropy(row)", 1000),
    "hidden": outputs("found.hidden(row)", 1000),
    "samples": outputs("found.sample(row, 1.0, 50, 0.9)", 1000),
    "samples-biased": """
chain = Sampler(temperature=1.0, top_p=0.9, logit_bias={i: 0.5 for i in range(600)}).handle()
while True:
    found = forward.forward(line, pages, 0, tokens)
    await all_of([found.sample(row, sampler=chain) for row in range(800)])
""",
    "verify": """
while True:
    await all_of([forward.verify(line, pages, 0, tokens[:1], tokens[1:257])])
""",
    # masks, prefills, decodes
    "masks": """
mask = [0xFFFFFFFF] * (1000 * 1000 // 32)
while True:
    await all_of([forward.forward(line, pages, 0, tokens, (), mask)])
""",
    "prefills": """
lines = [queue.create() for _ in range(20)]
rooms = [kv.alloc(len(pages)) for _ in lines]
while True:
    await all_of([forward.forward(one, room, 0, tokens) for one, room in zip(lines, rooms)])
""",
    "prefills-urgent": """
lines = [queue.create() for _ in range(20)]
rooms = [kv.alloc(len(pages)) for _ in lines]
for one in lines: queue.set_priority(one, 100)
while True:
    await all_of([forward.forward(one, room, 0, tokens) for one, room in zip(lines, rooms)])
""",
    "passes-of-16": """
lines = [queue.create() for _ in range(60)]
rooms = [kv.alloc(16) for _ in lines]
while True:
    at = [(one, room, 16 * i) for i in range(16) for one, room in zip(lines, rooms)]
    await all_of([forward.forward(one, room, start, tokens[:16]) for one, room, start in at])
""",
    "plans": """
async def one():
    while True:
        async with Context() as ctx:
            ctx.append(tokens[:100])
            await ctx.generate(200, stop_tokens=())
await asyncio.gather(*[one() for _ in range(64)])
""",
    "copies": """
lines = [queue.create() for _ in range(60)]
await forward.forward(line, pages, 0, tokens)
while True:
    await all_of([kv.copy(one, pages[0], 0, pages[-1], 0, 8) for one in lines for _ in range(60)])
""",
    "embeddings": """
held = embeds.text(tokens)
while True:
    await all_of([held.values(line) for _ in range(16)])
""",
}


@dataclass(frozen=True)
class Figures:
    """What the client saw of the victim in one window."""

    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float


class Watch:
    """Notes when each text of a process arrives."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(PierayError):  # it is killed in the end
            for _ in self.process:
                self.times.append(time.perf_counter())

    def window(self, seconds: float) -> Figures:
        """What arrives in the next `seconds`."""
        began = time.perf_counter()
        first = len(self.times)
        time.sleep(seconds)
        ended = time.perf_counter()
        seen = [at for at in self.times[first:] if at <= ended]
        last, gaps = began, []
        for at in [*seen, ended]:
            if at - last > TOGETHER_S:
                gaps.append((at - last) * 1e3)
                last = at
        cuts = statistics.quantiles(gaps, n=100, method="inclusive") if len(gaps) > 1 else gaps * 99
        return Figures(len(seen) / (ended - began), cuts[49], cuts[98], max(gaps))


def end(process: Process) -> None:
    with contextlib.suppress(PierayError):
        process.kill()
        process.result(timeout=60)


def measure(
    engine: pieray.Engine, victim: ProgramSource, program: ProgramSource, seconds: float, *, is_apart: bool
) -> tuple[Figures, Figures, str]:
    """The victim alone, then beside the hostile one, and how that one fared."""
    engine.tenant = "victim"
    process = engine.launch(victim, prompt=PROMPT)
    watch = Watch(process)
    while len(watch.times) < 20:
        time.sleep(0.01)
    alone = watch.window(seconds)
    engine.tenant = "hostile" if is_apart else "victim"
    other = engine.launch(program)
    time.sleep(WARM_UP_S)
    beside = watch.window(seconds)
    state = "running"
    if other.is_done:
        try:
            other.result(timeout=1)
        except PierayError as error:
            state = f"{error.code}: {error.message}"[:120]
    end(other)
    end(process)
    return alone, beside, state


def bare_step_ms(model: str, dtype: str) -> float:
    """Of one sequence, the decoder alone in its process; the least of five."""
    decoder = Peer("--bare", [1, 64, model, "cpu", dtype])
    found = []
    for _ in range(5):
        decoder.say(["greedy", 1])
        found.append(float(decoder.hear()[1]))
    decoder.close()
    return min(found)


def row(alone: Figures, beside: Figures, bare_ms: float, state: str) -> dict[str, object]:
    moved = (beside.p99_ms - alone.p99_ms) / bare_ms
    share = beside.per_s / alone.per_s if alone.per_s else 0.0
    return {
        "alone": [round(alone.per_s), round(alone.p50_ms, 2), round(alone.p99_ms, 2)],
        "beside": [round(beside.per_s), round(beside.p50_ms, 2), round(beside.p99_ms, 2)],
        "max_ms": round(beside.max_ms, 1),
        "p99_moved_steps": round(moved, 1),
        "share": round(share, 2),
        "ok": moved <= STEPS and share >= SHARE * (1 - TOLERANCE),
        **({} if state == "running" else {"hostile": state}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=1, help="the round with the median p99 counts")
    parser.add_argument("--only", nargs="+", choices=BODIES, default=list(BODIES), metavar="ROW")
    parser.add_argument("--passes", action="store_true", help="the victim asks for each token by a pass, not by a plan")
    parser.add_argument("--model", default="pie-tiny", help=f"{', '.join(SHAPES)}, a folder or an embedded model")
    parser.add_argument("--apart", action="store_true", help="the hostile inferlet is of another tenant")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        sys.stdout.write("\n".join(BODIES) + "\n")
        return
    victim = ProgramSource("victim", "victim.py", source=PASSES if arguments.passes else VICTIM)
    figures = {}
    with contextlib.ExitStack() as stack:
        model, dtype = arguments.model, "float32"
        if model in SHAPES:
            dtype, model = "bfloat16", str(make_model(model, Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        bare_ms = bare_step_ms(model, dtype)
        settings = {"path": model, "dtype": dtype, "threads": 1}  # the bare decoder has one too
        engine = stack.enter_context(pieray.start(settings, namespace="bench-neighbours"))
        measure(engine, victim, hostile("idle", "await asyncio.sleep(60)"), 0.5, is_apart=arguments.apart)
        for name in arguments.only:
            program = hostile(name, BODIES[name])
            rounds = [
                measure(engine, victim, program, arguments.seconds, is_apart=arguments.apart)
                for _ in range(arguments.rounds)
            ]
            alone, beside, state = sorted(rounds, key=lambda one: one[1].p99_ms)[len(rounds) // 2]
            figures[name] = row(alone, beside, bare_ms, state)
            sys.stdout.write(f"{name:16s} {figures[name]}\n")
            sys.stdout.flush()
    sys.stdout.write(
        json.dumps(
            {
                "claim": "no inferlet moves a neighbour's p99 gap by more than three bare steps or takes more than "
                "its share of the tokens; rows: [tokens/s, p50 ms, p99 ms]",
                "model": Path(arguments.model).name,
                "apart": arguments.apart,
                "bare_ms": round(bare_ms, 3),
                "victim": "passes" if arguments.passes else "plan",
                "figures": figures,
                "ratio": min(float(str(one["share"])) for one in figures.values()),
                "target": f"p99_moved_steps <= {STEPS:.0f}, share >= {SHARE}",
                "ok": all(one["ok"] for one in figures.values()),
                "machine": machine(),
            }
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
