"""What HTTP costs: the same streams through `pieray serve` and the Python API, on one engine, in turns.

Each side is a client process of its own.  `way`: a program sends the time of day as text, and the client tells how long
ago that was; the median over the door less that over the API is what the door adds to a token's way.

    python bench/door.py [--levels 1 8 32 128] [--tokens 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from common import machine

WAY_MS, SHARE = 0.5, 0.9
PROMPT = "12+7=? Think step by step."
STAMPS = """
import asyncio, time
from inferlet import session

async def main(prompt: str, count: int = 300):
    for _ in range(count):
        await asyncio.sleep(0.01)
        session.send(str(time.time_ns()) + " ")
"""
NAMESPACE = "bench-door"


async def http_texts(url: str, body: dict[str, Any]) -> AsyncIterator[str]:
    """Texts of one streamed chat, by the lightest client that there is: what is measured is the server."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(data) + data
    )
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:])["choices"]
            if choices and (text := choices[0]["delta"].get("content")):
                yield text
        elif line.startswith(b"data: [DONE]"):
            break
    writer.close()


async def api_texts(engine: Any, program: str, arguments: dict[str, Any]) -> AsyncIterator[str]:
    process = await engine.alaunch(program, arguments, attached=True)
    async for event in process:
        yield event.text


async def client(side: str, url: str, streams: int, tokens: int) -> dict[str, Any]:
    """All streams at once: milliseconds to the first text of each, and texts a second; or, of no stream, the way."""
    options = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "stream": True}
    options |= {"max_tokens": tokens, "ignore_eos": True}
    engine = None
    if side == "api":
        from pieray.cli.engines import find_up

        found = find_up(NAMESPACE)
        assert found is not None
        engine = found[1]

    def texts() -> AsyncIterator[str]:
        if not streams:
            if engine is not None:
                return api_texts(engine, "stamps", {"prompt": ""})
            asked = {"model": "stamps", "messages": [{"role": "user", "content": ""}], "stream": True}
            return http_texts(url, asked)
        return http_texts(url, options) if engine is None else api_texts(engine, "openai-generate", options)

    async def one() -> tuple[float, int]:
        began, first, count = time.perf_counter(), 0.0, 0
        async for _ in texts():
            first = first or time.perf_counter() - began
            count += 1
        return first * 1e3, count

    try:
        if not streams:
            ways = [(time.time_ns() - int(stamp)) / 1e6 async for text in texts() for stamp in text.split()]
            return {"way_ms": statistics.median(ways), "p99_ms": statistics.quantiles(ways, n=100)[-1]}
        await one()  # what only the first pays
        began = time.perf_counter()
        done = await asyncio.gather(*(one() for _ in range(streams)))
        seconds = time.perf_counter() - began
    finally:
        if engine is not None:
            engine.close()
    return {
        "first_ms": statistics.median(first for first, _ in done),
        "texts_per_s": sum(count for _, count in done) / seconds,
        "requests_per_s": streams / seconds,
    }


def run_client(side: str, url: str, streams: int, tokens: int) -> dict[str, float]:
    words = [sys.executable, __file__, "--client", side, url, str(streams), str(tokens)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextlib.contextmanager
def served() -> Iterator[str]:
    """An engine of `pieray up`, and the URL of `pieray serve` on it."""
    pieray = str(Path(sys.executable).parent / "pieray")
    with tempfile.TemporaryDirectory() as home:
        os.environ["PIERAY_HOME"] = home
        stamps = Path(home) / "stamps.py"
        stamps.write_text(STAMPS)
        try:
            subprocess.run([pieray, "up", "--namespace", NAMESPACE], check=True, stderr=subprocess.DEVNULL)
            subprocess.run([pieray, "install", str(stamps), "--namespace", NAMESPACE], check=True, capture_output=True)
            words = [pieray, "serve", "--port", "0", "--namespace", NAMESPACE]
            server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
            assert server.stderr is not None
            line = next(line for line in server.stderr if "pieray: serving" in line)
            threading.Thread(target=server.stderr.read, daemon=True).start()  # a line for each request
            yield next(word for word in line.split() if word.startswith("http")).removesuffix("/v1,")
            server.terminate()
            server.wait(30)
        finally:
            subprocess.run([pieray, "down", "--namespace", NAMESPACE], check=False, capture_output=True)


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(r[name] for r in rounds), 3) for name in rounds[0]}


def spread(rounds: list[dict[str, float]], name: str) -> list[float]:
    return [round(min(r[name] for r in rounds), 2), round(max(r[name] for r in rounds), 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", nargs=4)
    arguments = parser.parse_args()
    if arguments.client:
        side, url, streams, tokens = arguments.client
        sys.stdout.write(json.dumps(asyncio.run(client(side, url, int(streams), int(tokens)))) + "\n")
        return
    figures: dict[str, Any] = {}
    with served() as url:
        ways: dict[str, list[dict[str, float]]] = {"door": [], "api": []}
        for _ in range(arguments.rounds):
            for side, rounds in ways.items():
                rounds.append(run_client(side, url, 0, 0))
        figures["way"] = {side: medians(rounds) for side, rounds in ways.items()}
        added = round(figures["way"]["door"]["way_ms"] - figures["way"]["api"]["way_ms"], 3)
        sys.stdout.write(f"way: {figures['way']}; the door adds {added} ms\n")
        for level in arguments.levels:
            both: dict[str, list[dict[str, float]]] = {"door": [], "api": []}
            for _ in range(arguments.rounds):
                for side, rounds in both.items():
                    rounds.append(run_client(side, url, level, arguments.tokens))
            row = figures[str(level)] = {side: medians(rounds) for side, rounds in both.items()}
            row["share"] = round(row["door"]["texts_per_s"] / row["api"]["texts_per_s"], 3)
            row["texts_per_s"] = {side: spread(rounds, "texts_per_s") for side, rounds in both.items()}
            sys.stdout.write(f"{level:3d} streams: {row}\n")
    share = figures.get("32", {}).get("share")
    line = {
        "claim": "the door adds 0.5 ms to a token's way, and keeps 0.9 of the engine's tokens a second at 32 streams",
        "figures": figures,
        "targets": {"added ms": f"{added} (<= {WAY_MS})", "32: share": f"{share} (>= {SHARE})"},
        "ok": added <= WAY_MS and share is not None and share >= SHARE,
        "machine": machine(),
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
