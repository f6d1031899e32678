"""What happens when programs want more pages than there are: every program ends, with the text it would have had.

Each contract is a list of programs with their arrivals.  It runs on a pool that takes all of it (unpressed), and on
one that does not (pressed), with host memory to swap to, with little of it and without, and first come first served: a
client that knows how many pages each program will take lets it in when so many are left.  They take turns, round by
round.  Of each: programs that failed, texts that differ from the unpressed ones, throughput (tokens drawn over the time
from the first launch to the last result) over the unpressed rate, completion p50 and p99, and what the pool did.  Where
a program is to fail on the pressed pool, the two do not do the same work, and there is no rate; it is told how soon and
with what it failed.

    python bench/pressure.py [--rounds 3] [--only CONTRACT ...] [--pools no_swap ...] [--soak 600]

The programs of a contract are the same in each round; "hog", "churn" and others are described beside their code.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import machine
from prefix import roomy_model

import pieray
from pieray.client.connecting import connect_door
from pieray.errors import PierayError

PAGE = 16  # tokens
POOL = 192  # pages, pressed
AMPLE = 16 * POOL + 512
SMALL_SWAP = 1 << 20  # bytes of host memory
POOLS = ("small_swap", "no_swap", "fcfs")
"""Beside the one that is pressed with room for all in host memory."""
COUNTERS = "waited", "preempted"
RATE_4X, RATE_16X, HIGH_P99 = 0.95, 0.85, 2.0
SOURCE = """
from inferlet import Context, runtime, session
async def main(prompt, max_tokens, turns=1, away_s=0.0, reserve=0, share=()):
    async with Context([*share, *prompt]) as ctx:
        if reserve:
            await ctx.reserve(reserve)
        for turn in range(turns):
            if turn:
                await runtime.sleep(away_s)
                ctx.append([7 + turn] * 5)
            await session.stream(ctx.generate(max_tokens, stop_tokens=()))
        return list(ctx.tokens[len(share) + len(prompt):])
"""
PROGRAM = pieray.ProgramSource("pressure", "pressure.py", source=SOURCE)


@dataclass
class Work:
    """One program of a contract."""

    prompt: int  # tokens
    drawn: int  # tokens a turn
    at_s: float = 0.0  # after the first
    turns: int = 1
    away_s: float = 0.0  # between turns
    reserve: int = 0
    priority: int = 0
    shared: int = 0  # tokens before the prompt that all have
    kind: str = ""
    may_fail: bool = False
    tokens: list[int] = field(default_factory=list)

    @property
    def pages(self) -> int:
        num_tokens = self.shared + self.prompt + self.turns * self.drawn + 5 * (self.turns - 1)
        return -(-num_tokens // PAGE)


@dataclass
class Done:
    """What became of it."""

    work: Work
    seconds: float
    ended_at: float
    said: list[int] | None
    error: str = ""


def crowd(times: float, pages: int = 8, **more: Any) -> list[Work]:
    """Programs of so many pages that want the pool so many times over."""
    prompt = pages * PAGE // 2
    return [Work(prompt, pages * PAGE - prompt, **more) for _ in range(int(times * POOL / pages))]


def contracts() -> dict[str, list[Work]]:
    """By name; each in the words of what it tries."""
    rng = random.Random(5)
    return {
        "fits": crowd(1),
        "4x": crowd(4),
        "16x": crowd(16),
        "reserve": crowd(4, reserve=8),
        "thrash": crowd(4, pages=POOL // 3),  # three fit, twelve grow at once
        "one-prefix": [Work(PAGE, 6 * PAGE, shared=20 * PAGE) for _ in range(60)],
        "hog": [Work(PAGE, (POOL - 8) * PAGE // 4, turns=3, kind="hog"), *crowd(2, at_s=0.3)],
        "impossible": [Work((POOL + 8) * PAGE, 8, may_fail=True), *crowd(0.5)],
        "churn": [Work(PAGE, rng.randint(2, 6) * PAGE, at_s=0.02 * n) for n in range(200)],
        "one-at-a-time": [Work(PAGE, (POOL - 30) * PAGE // 4, turns=3) for _ in range(4)],
        "long-at-the-head": [Work((POOL - 20) * PAGE, 2 * PAGE, kind="long"), *crowd(1.5, at_s=0.05)],
        "one-page-more": [Work(PAGE, (POOL - 2) * PAGE // 2, turns=1, kind="long") for _ in range(3)],
        "tail": [*crowd(2), *crowd(2, at_s=0.5)],
        "idle": [*crowd(1, turns=3, away_s=0.5, kind="idle"), *crowd(3, at_s=0.1)],
    }


class Gate:
    """First come, first served: programs come in when the pool has pages for all of each."""

    def __init__(self) -> None:
        self._left = POOL
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, num_pages: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((num_pages, future))
        self._serve()
        await future

    def leave(self, num_pages: int) -> None:
        self._left += num_pages
        self._serve()

    def _serve(self) -> None:
        while self._line and self._line[0][0] <= self._left:
            num_pages, future = self._line.popleft()
            self._left -= num_pages
            future.set_result(None)


async def run(engine: pieray.Engine, works: list[Work], gate: Gate | None = None) -> list[Done]:
    """All programs of a contract, each at its time, as the gate lets them in."""
    began = time.perf_counter()

    async def one(work: Work) -> Done:
        await asyncio.sleep(max(0.0, work.at_s - (time.perf_counter() - began)))
        launched, said, error = time.perf_counter(), None, ""
        if gate is not None:
            await gate.enter(min(work.pages, POOL))
        share, prompt = work.tokens[: work.shared], work.tokens[work.shared :]
        try:
            process = await engine.alaunch(
                PROGRAM,
                prompt=prompt,
                share=share,
                max_tokens=work.drawn,
                turns=work.turns,
                away_s=work.away_s,
                reserve=work.reserve,
                priority=work.priority,
            )
            said = await process.wait(timeout=600)
        except PierayError as failed:
            error = f"{failed.code}: {failed.message.splitlines()[0]}"
        if gate is not None:
            gate.leave(min(work.pages, POOL))
        now = time.perf_counter()
        return Done(work, now - launched, now - began, said, error)

    return list(await asyncio.gather(*map(one, works)))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def facts_of(rounds: list[list[Done]], texts: list[list[int] | None]) -> dict[str, Any]:
    """Of one pool, over its rounds; `texts` are the unpressed ones."""
    failed = [done.error for dones in rounds for done in dones if done.error and not done.work.may_fail]
    num_wrong = sum(
        done.said != text
        for dones in rounds
        for done, text in zip(dones, texts, strict=True)
        if done.said is not None and text is not None
    )
    seconds = [done.seconds for dones in rounds for done in dones]
    rates = [rate(dones) for dones in rounds]
    refused = [done for dones in rounds for done in dones if done.work.may_fail and done.error]
    told = {"refused_s": round(max(d.seconds for d in refused), 2), "refused": refused[0].error} if refused else {}
    return {
        **told,
        "failed": len(failed),
        "wrong": num_wrong,
        "error": failed[0] if failed else "",
        "tok_s": round(statistics.median(rates), 1),
        "tok_s_from": round(min(rates), 1),
        "tok_s_to": round(max(rates), 1),
        "p50_s": round(percentile(seconds, 0.5), 2),
        "p99_s": round(percentile(seconds, 0.99), 2),
    }


def rate(dones: list[Done]) -> float:
    return sum(len(done.said or ()) for done in dones) / max(done.ended_at for done in dones)


def counters(engine: pieray.Engine) -> Counter[str]:
    """What the pool has done so far."""
    status = next(actor for actor in engine.status()["actors"] if actor["role"] == "resource-manager")
    return Counter({name: status[name] for name in COUNTERS})


def serve_urgent() -> None:
    """The life of a client process of its own: for each line of standard input a short program of high priority, from
    its launch to its result; how long that took, a line of standard output."""
    rng = random.Random(9)
    endpoint, token = json.loads(sys.stdin.readline())
    with connect_door(endpoint, token) as engine:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for _ in sys.stdin:
            prompt, began = [rng.randrange(10, 600) for _ in range(PAGE)], time.perf_counter()
            engine.launch(PROGRAM, prompt=prompt, max_tokens=2 * PAGE, priority=50).result(timeout=300)
            sys.stdout.write(f"{time.perf_counter() - began}\n")
            sys.stdout.flush()


class UrgentClient:
    """That process, as its parent sees it."""

    def __init__(self, engine: pieray.Engine) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "urgent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._say(json.dumps(engine.door()))
        assert self._hear() == "ready", "the client did not start"

    def ask(self) -> float:
        """Seconds that one program takes, as the client sees it."""
        self._say("once")
        return float(self._hear())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


async def beside_backlog(engine: pieray.Engine, rounds: int) -> dict[str, Any]:
    """A short program of high priority, from a client of its own: alone, and beside a backlog of sixteen times the
    pool, from the moment on in which all of that is launched."""
    rng = random.Random(9)
    alone: list[list[float]] = []
    beside: list[float] = []
    client = UrgentClient(engine)
    try:
        await asyncio.to_thread(client.ask)
        for _ in range(rounds):
            alone.append([await asyncio.to_thread(client.ask) for _ in range(200)])
            backlog = crowd(16)
            fill(backlog, rng)
            task = asyncio.create_task(run(engine, backlog))
            await asyncio.sleep(0.5)
            while not task.done():
                seconds = await asyncio.to_thread(client.ask)
                if not task.done():
                    beside.append(seconds)
            await task
    finally:
        client.close()
    alone_p99 = min(percentile(one, 0.99) for one in alone)  # an outlier alone must not make the other side look good
    return {
        "alone_p50_s": round(percentile([each for one in alone for each in one], 0.5), 3),
        "alone_p99_s": round(alone_p99, 3),
        "beside_p50_s": round(percentile(beside, 0.5), 3),
        "beside_p99_s": round(percentile(beside, 0.99), 3),
        "p99_ratio": round(percentile(beside, 0.99) / alone_p99, 2),
        "num_beside": len(beside),
    }


def fill(works: list[Work], rng: random.Random) -> None:
    shared = [rng.randrange(10, 600) for _ in range(4096)]
    for work in works:
        work.tokens = [*shared[: work.shared], *(rng.randrange(10, 600) for _ in range(work.prompt))]


async def soak(engine: pieray.Engine, seconds: float) -> dict[str, Any]:
    """Random programs, of which one in five is killed at a random moment; texts of the others are compared with the
    same program's, run alone in the end."""
    rng, until = random.Random(11), time.perf_counter() + seconds
    sample: list[Done] = []
    num = {"ran": 0, "killed": 0, "failed": 0}
    errors: list[str] = []

    async def one(work: Work, kill_after: float | None) -> None:
        num["ran"] += 1
        try:
            process = await engine.alaunch(
                PROGRAM,
                prompt=work.tokens,
                max_tokens=work.drawn,
                turns=work.turns,
                away_s=work.away_s,
                priority=work.priority,
            )
            if kill_after is not None:
                await asyncio.sleep(kill_after)
                await process.akill("the soak")
            said = await process.wait(timeout=300)
        except PierayError as failed:
            if kill_after is None:
                num["failed"] += 1
                errors.append(f"{failed.code}: {failed.message.splitlines()[0]}")
            else:
                num["killed"] += 1
            return
        if rng.random() < 0.05 and len(sample) < 40:
            sample.append(Done(work, 0.0, 0.0, said))

    running: set[asyncio.Task[None]] = set()
    while time.perf_counter() < until:
        while len(running) < 100:
            work = Work(
                rng.randint(1, 200),
                rng.randint(1, 200),
                turns=rng.choice([1, 1, 1, 3]),
                away_s=0.3,
                priority=rng.choice([0, 0, 0, 5]),
            )
            work.tokens = [rng.randrange(10, 600) for _ in range(work.prompt)]
            kill_after = rng.uniform(0, 2) if rng.random() < 0.2 else None
            running.add(asyncio.create_task(one(work, kill_after)))
        _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*running)
    num["compared"] = len(sample)
    num["wrong"] = sum([(await run(engine, [done.work]))[0].said != done.said for done in sample])
    return {**num, "error": errors[0] if errors else ""}


def start(name: str, path: str, num_pages: int, swap_bytes: int) -> pieray.Engine:
    model = {"path": path, "num_pages": num_pages, "swap_memory_bytes": swap_bytes}
    return pieray.start(namespace=f"bench-pressure-{name}", model=model, inferlets_per_actor=512, prefix_cache=True)


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rng = random.Random(3)
    with contextlib.ExitStack() as stack:
        path = str(roomy_model(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        pools: dict[str, pieray.Engine] = {}
        for pool, num_pages, swap_bytes in (
            ("ample", AMPLE, 4 << 30),
            ("swap", POOL, 4 << 30),
            ("small_swap", POOL, SMALL_SWAP),
            ("no_swap", POOL, 0),
        ):
            if pool in ("ample", "swap", *given.pools):
                pools[pool] = engine = stack.enter_context(start(pool.replace("_", "-"), path, num_pages, swap_bytes))
                warm = crowd(1)  # guests are made ahead
                fill(warm, rng)
                await run(engine, warm)
        swap = pools["swap"]
        if "fcfs" in given.pools:
            pools["fcfs"] = swap
        for name, works in contracts().items():
            if given.only and name not in given.only:
                continue
            fill(works, rng)
            rounds: dict[str, list[list[Done]]] = {pool: [] for pool in pools}
            did: dict[str, Counter[str]] = {pool: Counter() for pool in pools}
            for _ in range(given.rounds):
                for pool, engine in pools.items():
                    before = counters(engine)
                    rounds[pool].append(await run(engine, works, Gate() if pool == "fcfs" else None))
                    did[pool] += counters(engine) - before
            texts = [done.said for done in rounds["ample"][0]]
            facts = {"programs": len(works), "demand": round(sum(work.pages for work in works) / POOL, 2)}
            for pool in pools:
                ratios = [rate(p) / rate(a) for p, a in zip(rounds[pool], rounds["ample"], strict=True)]
                is_same_work = not any(work.may_fail for work in works)
                compared = {"rate": round(statistics.median(ratios), 3)} if is_same_work else {}
                facts[pool] = {
                    **compared,
                    **facts_of(rounds[pool], texts),
                    **{name: did[pool][name] for name in COUNTERS},
                }
            found[name] = facts
            print(json.dumps({"claim": "pressure", "contract": name, **facts}), flush=True)
        if not given.only or "priority" in given.only:
            found["priority"] = await beside_backlog(swap, given.rounds)
            print(json.dumps({"claim": "pressure", "contract": "priority", **found["priority"]}), flush=True)
        if given.soak:
            found["soak"] = await soak(swap, given.soak)
            print(json.dumps({"claim": "pressure", "contract": "soak", **found["soak"]}), flush=True)
    return found


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Which targets hold, of those measured."""
    checks: dict[str, Callable[[], bool]] = {
        "4x": lambda: found["4x"]["swap"]["rate"] >= RATE_4X,
        "16x": lambda: found["16x"]["swap"]["rate"] >= RATE_16X,
        "priority": lambda: found["priority"]["p99_ratio"] <= HIGH_P99,
        "impossible": lambda: found["impossible"]["swap"].get("refused", "").startswith("out-of-pages"),
        "soak": lambda: not found["soak"]["failed"] and not found["soak"]["wrong"],
    }
    held = {name: check() for name, check in checks.items() if name in found}
    for pool in ("swap", *POOLS):
        told = [facts[pool] for facts in found.values() if pool in facts]
        if told:
            held[f"{pool}: none fails, none differs"] = not any(facts["failed"] + facts["wrong"] for facts in told)
    return held


def main() -> int:
    if sys.argv[1:] == ["urgent"]:
        serve_urgent()
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--soak", type=float, default=0.0, help="seconds")
    parser.add_argument("--pools", nargs="*", default=POOLS, choices=POOLS, help="beside swap")
    given = parser.parse_args()
    held = verdicts(asyncio.run(measure(given)))
    print(json.dumps({"claim": "pressure", **machine(), "pool_pages": POOL, "ok": held}))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
