"""Cold start: from `pieray run` with nothing running to the first token on the terminal, and how much of it is Ray's.

Each round runs both in fresh processes: `pieray run text-completion`, timed to its first byte of text, and a driver
that only starts the same local Ray and one actor.

    python bench/cold_start.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from common import machine

RUN = [
    sys.executable,
    "-c",
    "from pieray.cli import main; main()",
    "run",
    "--address",
    "local",
    "text-completion",
    "--",
    "--prompt",
    "12+7=",
]
RAY = [
    sys.executable,
    "-c",
    "import ray\n"
    "from pieray.cluster.ray_cluster import LOCAL_RAY, prepare_environment\n"
    "prepare_environment()\n"
    "ray.init(**LOCAL_RAY)\n"
    "A = ray.remote(num_cpus=0)(type('A', (), {'f': lambda self: 1}))\n"
    "ray.get(A.remote().f.remote())\n"
    "print('up', flush=True)\n",
]
TARGET_S, OWN_TARGET_S = 12.0, 5.0


def first_output(command: list[str]) -> float:
    """Seconds from the start of the process to its first byte on standard output."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        took = time.perf_counter() - began
        process.stdout.read()
    assert first, f"{command[0]} printed nothing and exited with {process.returncode}"
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    first_output(RUN)  # builds and compiles the Python runtime if need be: an installation's first run only
    pairs = [(first_output(RUN), first_output(RAY)) for _ in range(rounds)]
    whole = statistics.median(run for run, _ in pairs)
    own = statistics.median(run - ray for run, ray in pairs)
    line = {
        "claim": "a cold `pieray run` prints its first token within 12 s, of which pieray takes under 5",
        "figures": {
            "first_token_s": round(whole, 2),
            "ray_alone_s": round(whole - own, 2),
            "pieray_s": round(own, 2),
            "rounds": rounds,
        },
        "ratio": round(whole / (whole - own), 2),
        "target": f"first_token_s < {TARGET_S:.0f} and pieray_s < {OWN_TARGET_S:.0f}",
        "ok": whole < TARGET_S and own < OWN_TARGET_S,
        "machine": machine(),
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
