"""Agents as inferlets, and as client loops over a completion call, on the same engine with the same tools.

* react: 8 times 32 tokens are drawn, a tool is asked over HTTP, and its observation of 24 tokens is appended.
* codeact: the same with 48 tokens, and a piece of Python runs in between: in the guest, or in the client.
* swarm: four agents in a ring, 8 times each: tokens are drawn, a tool is asked, and a message goes to the next agent,
  over the engine's queues or through the client.

A client loop sends the whole conversation with each call, as clients of completion endpoints do; pages that were
computed before are found (`prefix_cache`).  "http" calls `/v1/completions` of a door in a process of its own, over
connections that stay open; "python" launches an inferlet for each call over the Python API.  Both sides draw the same
tokens: their conversations are compared.  Each row is timed from the launch of the first of `--programs` programs, all
at once, to the end of the last; the sides take turns; medians of the rounds, and the range.  The tool's server is a
process of its own, and answers after 0, 10 or 100 ms.

    python bench/agents.py [--rounds 5] [--programs 8] [--only react] [--delays 0 10 100]

A row is ok if the inferlets are 1.5 times as fast as the loop over HTTP, which is what a completion endpoint is to its
clients.  The loop over the Python API, whose calls are launches of inferlets, is shown beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from common import machine
from prefix import roomy_model, tokens

import pieray

TARGET = 1.5
PROMPT, OBSERVATION, TURNS, AGENTS = 200, 24, 8, 4
DRAWN = {"react": 32, "codeact": 48, "swarm": 32}
CODE = "total = 0\nfor n in range(2000):\n    total += n * n\n"
AGENT = """
from inferlet import Context, http, messaging
async def main(prompt, observation, turns, drawn, url, code="", own="", other=""):
    async with Context(prompt) as ctx:
        for _ in range(turns):
            await ctx.generate(drawn, stop_tokens=())
            if code:
                exec(code, {})
            await http.get(url)
            if other:
                await messaging.push(other, "done")
                await messaging.pull(own, timeout=60)
            ctx.append(observation)
        return ctx.tokens
"""
COMPLETION = """
from inferlet import Context
async def main(prompt, drawn):
    async with Context(prompt) as ctx:
        generation = ctx.generate(drawn, stop_tokens=())
        await generation
        return generation.tokens
"""
AGENT_PROGRAM = pieray.ProgramSource("agent", "agent.py", source=AGENT)
COMPLETION_PROGRAM = pieray.ProgramSource("completion", "completion.py", source=COMPLETION)
Complete = Callable[[list[int], int], Awaitable[list[int]]]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def serve_tool(port: int) -> None:
    """`/MILLISECONDS` answers after so long."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def tool(request: Request) -> PlainTextResponse:
        await asyncio.sleep(int(request.path_params["ms"]) / 1e3)
        return PlainTextResponse("observed")

    uvicorn.run(Starlette(routes=[Route("/{ms:int}", tool)]), port=port, log_level="error", access_log=False)


def serve_door(namespace: str, address: str, port: int) -> None:
    from pieray.server.app import Door
    from pieray.server.guard import Guard
    from pieray.server.hosting import listening, serve

    engine = pieray.connect(address, namespace)
    gate = Guard()
    app, bound = Door(engine, model="pie-tiny").app(gate), listening("127.0.0.1", port)
    serve(app, gate, bound, wants_end=lambda: None, on_ready=lambda: None)


async def answers(client: httpx.AsyncClient, url: str) -> None:
    for _ in range(600):
        try:
            await client.get(url)
            return
        except httpx.TransportError:
            await asyncio.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


class Work:
    """One row: what every program of it is given."""

    def __init__(self, kind: str, delay_ms: int, tool: str, seed: int) -> None:
        rng = random.Random(seed)
        self.kind, self.drawn, self.url = kind, DRAWN[kind], f"{tool}/{delay_ms}"
        self.code = CODE if kind == "codeact" else ""
        self.prompts = lambda: [tokens(rng, PROMPT) for _ in range(AGENTS if kind == "swarm" else 1)]
        self.observation = tokens(rng, OBSERVATION)


async def as_inferlets(engine: Any, work: Work, prompts: list[list[int]], name: str) -> list[list[int]]:
    given = {"observation": work.observation, "turns": TURNS, "drawn": work.drawn, "url": work.url, "code": work.code}
    powers = {"http": [work.url.split("/")[2]], "messaging": True}
    names = [f"{name}-{number}" for number in range(len(prompts))]
    others = names[1:] + names[:1] if len(prompts) > 1 else [""]
    processes = [
        await engine.alaunch(
            AGENT_PROGRAM, {**given, "prompt": prompt, "own": own, "other": other}, capabilities=powers
        )
        for prompt, own, other in zip(prompts, names, others, strict=True)
    ]
    return [await process.wait() for process in processes]


async def as_client_loops(
    client: httpx.AsyncClient, complete: Complete, work: Work, prompts: list[list[int]]
) -> list[list[int]]:
    boxes: list[asyncio.Queue[str]] = [asyncio.Queue() for _ in prompts]

    async def agent(number: int, prompt: list[int]) -> list[int]:
        said = list(prompt)
        for _ in range(TURNS):
            said += await complete(said, work.drawn)
            if work.code:
                exec(work.code, {})
            await client.get(work.url)
            if len(prompts) > 1:
                await boxes[(number + 1) % len(prompts)].put("done")
                await boxes[number].get()
            said += work.observation
        return said

    return list(await asyncio.gather(*(agent(number, prompt) for number, prompt in enumerate(prompts))))


async def timed(run: Callable[[list[list[int]], str], Awaitable[list[list[int]]]], work: Work, programs: int) -> Any:
    """Seconds of all, of each, and what was said."""
    given = [work.prompts() for _ in range(programs)]
    each: list[float] = []

    async def one(number: int) -> list[list[int]]:
        began = time.perf_counter()
        said = await run(given[number], f"{time.time_ns()}-{number}")
        each.append(time.perf_counter() - began)
        return said

    began = time.perf_counter()
    said = await asyncio.gather(*(one(number) for number in range(programs)))
    return time.perf_counter() - began, each, given, said


async def measure(engine: Any, namespace: str, address: str, options: argparse.Namespace) -> bool:
    ports = free_port(), free_port()
    spawn = multiprocessing.get_context("spawn")
    servers = [
        spawn.Process(target=serve_tool, args=(ports[0],), daemon=True),
        spawn.Process(target=serve_door, args=(namespace, address, ports[1]), daemon=True),
    ]
    for server in servers:
        server.start()
    tool, door = (f"http://127.0.0.1:{port}" for port in ports)
    is_ok = True
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:
        await answers(client, f"{tool}/0")
        await answers(client, f"{door}/health")

        async def over_http(prompt: list[int], drawn: int) -> list[int]:
            asked = {"prompt": prompt, "max_tokens": drawn, "temperature": 0, "ignore_eos": True}
            found = await client.post(f"{door}/v1/completions", json={**asked, "return_token_ids": True})
            found.raise_for_status()
            ids: list[int] = found.json()["choices"][0]["token_ids"]
            return ids

        async def over_python(prompt: list[int], drawn: int) -> list[int]:
            process = await engine.alaunch(COMPLETION_PROGRAM, {"prompt": prompt, "drawn": drawn})
            ids: list[int] = await process.wait()
            return ids

        for kind in options.only or DRAWN:
            for delay_ms in options.delays:
                work = Work(kind, delay_ms, tool, seed=delay_ms)
                sides = {
                    "inferlets": lambda prompts, name, work=work: as_inferlets(engine, work, prompts, name),
                    "http": lambda prompts, _, work=work: as_client_loops(client, over_http, work, prompts),
                    "python": lambda prompts, _, work=work: as_client_loops(client, over_python, work, prompts),
                }
                is_ok &= await row(work, delay_ms, sides, options)
    for server in servers:
        server.kill()  # Ray's handler of SIGTERM would write a stack
    return is_ok


async def row(work: Work, delay_ms: int, sides: dict[str, Any], options: argparse.Namespace) -> bool:
    rates: dict[str, list[float]] = {name: [] for name in sides}
    latencies: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):  # the first warms up, and shows that all say the same
        for name, run in sides.items():
            seconds, each, given, said = await timed(run, work, options.programs)
            if turn:
                rates[name].append(options.programs / seconds)
                latencies[name] += each
            else:
                again = await sides["inferlets"](given[0], f"again-{time.time_ns()}")
                if said[0] != again:
                    raise SystemExit(f"{work.kind} as {name} says something else than as inferlets")
    found = {name: statistics.median(values) for name, values in rates.items()}
    print(
        json.dumps(
            {
                "bench": "agents",
                "kind": work.kind,
                "delay_ms": delay_ms,
                "programs": options.programs,
                "programs_per_s": {name: round(rate, 2) for name, rate in found.items()},
                "range": {name: [round(min(all_), 2), round(max(all_), 2)] for name, all_ in rates.items()},
                "p50_s": {name: round(statistics.median(all_), 3) for name, all_ in latencies.items()},
                "p99_s": {name: round(sorted(all_)[int(len(all_) * 0.99)], 3) for name, all_ in latencies.items()},
                "inferlets_over_http": round(found["inferlets"] / found["http"], 2),
                "inferlets_over_python": round(found["inferlets"] / found["python"], 2),
                "target": TARGET,
                "ok": found["inferlets"] >= TARGET * found["http"],
            }
        ),
        flush=True,
    )
    return bool(found["inferlets"] >= TARGET * found["http"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--programs", type=int, default=8)
    parser.add_argument("--only", nargs="*", choices=list(DRAWN))
    parser.add_argument("--delays", nargs="*", type=int, default=[0, 10, 100])
    options = parser.parse_args()
    namespace = f"agents-{time.time_ns()}"
    with tempfile.TemporaryDirectory() as folder:
        model = {"path": str(roomy_model(Path(folder) / "pie-tiny"))}
        settings: dict[str, Any] = {"http_hosts": "*:*", "http_private": True, "namespace": namespace}
        with pieray.start(model=model, limits={"http_calls": 10_000}, **settings) as engine:
            import ray

            print(json.dumps({"bench": "agents", **machine()}))
            address = ray.get_runtime_context().gcs_address
            return 0 if asyncio.run(measure(engine, namespace, address, options)) else 1


if __name__ == "__main__":
    sys.exit(main())
