"""Claim: a model is loaded in at most 1.3 times what reading its bytes takes, with 1.2 times its memory at most.

A random Llama of 1.2 billion parameters in bfloat16, in the page cache, one thread; each in a process of its own.
`seconds` are of `ModelRunner.load` with a small pool, over those of reading the file into memory that is taken for it,
as large pages, in the same round. `peak` is the most memory that the process had beyond what it had before, over the
bytes of the weights: memory of its own (`own`), and with the pages of the file that it has mapped (`all`), which the
system takes back when it needs them. Weights are those that are served: of int8, half of the file.

    python bench/load.py [--rounds 3] [--folder build/load]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from common import machine
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
WAYS: dict[str, dict[str, Any]] = {"bfloat16": {}, "int8": {"quantization": "int8"}}
SECONDS, PEAK = 1.3, 1.2


def make(folder: Path) -> None:
    """The folder of the model, written unless it is there."""
    if (folder / "model.safetensors").exists():
        return
    from pieray.models.config import ModelConfig
    from pieray.models.tensor_shapes import wanted_tensors

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in wanted_tensors(ModelConfig.from_folder(folder)).items():
        values = torch.randn(1 << 16, generator=generator).mul_(0.02).bfloat16()
        size = int(torch.tensor(shape).prod())
        tensors[name] = values.repeat(-(-size // len(values)))[:size].view(shape).contiguous()
    save_file(tensors, folder / "model.safetensors")


def memory() -> dict[str, int]:
    """Bytes that this process has: of its own, and with what it has mapped of files."""
    lines = dict(
        line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss")
    )
    found = {name: int(value.split()[0]) << 10 for name, value in lines.items()}
    return {"own": found["RssAnon"], "all": sum(found.values())}


class Peak:
    """The most memory between enter and exit, looked at each 5 ms."""

    def __enter__(self) -> Peak:
        self._before = self.most = memory()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.most = {name: value - self._before[name] for name, value in self.most.items()}

    def _watch(self) -> None:
        while not self._is_over.wait(0.005):
            now = memory()
            self.most = {name: max(value, now[name]) for name, value in self.most.items()}


def one(way: str, folder: Path) -> dict[str, Any]:
    """Read the file or load the model, in this process."""
    torch.set_num_threads(1)
    file = folder / "model.safetensors"
    if way == "read":
        from pieray.models.arena import huge_memory

        began = time.perf_counter()
        with file.open("rb", buffering=0) as stream:
            target = memoryview(huge_memory(file.stat().st_size).numpy())
            at = 0
            while at < len(target):
                at += stream.readinto(target[at : at + (16 << 20)]) or 0
        return {"seconds": time.perf_counter() - began}
    from pieray.kernels.cc import library
    from pieray.models.runner import ModelRunner

    library()
    with Peak() as peak:
        began = time.perf_counter()
        ModelRunner.load(folder, dtype="bfloat16", num_pages=16, threads=1, **WAYS[way])
        seconds = time.perf_counter() - began
    return {"seconds": seconds, **peak.most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/load"))
    parser.add_argument("--way")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(one(options.way, options.folder)))
        return
    make(options.folder)
    nbytes = (options.folder / "model.safetensors").stat().st_size
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ("read", *WAYS)}
    for _ in range(options.rounds):
        for way, rounds in found.items():
            command = [sys.executable, __file__, "--way", way, "--folder", str(options.folder)]
            rounds.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    figures: dict[str, Any] = {"file_bytes": nbytes}
    figures["read_s"] = round(statistics.median(one["seconds"] for one in found["read"]), 2)
    for way in WAYS:
        ratios = [one["seconds"] / read["seconds"] for one, read in zip(found[way], found["read"], strict=True)]
        weights = nbytes if way == "bfloat16" else nbytes / 2 + CONFIG["vocab_size"] * CONFIG["hidden_size"]
        peaks = {name: round(max(one[name] for one in found[way]) / weights, 2) for name in ("own", "all")}
        figures[way] = {"seconds": round(statistics.median(ratios), 2), **peaks}
    plain = figures["bfloat16"]
    print(
        json.dumps(
            {
                "claim": "loading takes at most 1.3 of reading the bytes, and 1.2 of the memory of the weights",
                "figures": figures,
                "ratio": plain["seconds"],
                "target": f"at most {SECONDS}; memory of its own at most {PEAK}",
                "ok": plain["seconds"] <= SECONDS and plain["own"] <= PEAK,
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
