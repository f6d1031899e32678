"""Trains pie-tiny from a seed: `python -m tools.train_pie_tiny.train`.

Everything but rounding follows from the options. Checkpoints go to `--work`, from where `--resume`
goes on with the same run; the finished model goes to `--out`, and `evaluate --card` writes its
scores into the card. `--export-only` exports the last checkpoint of a run, finished or not.
On a machine that others use too, OMP_WAIT_POLICY=passive in the environment makes it faster.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from tools.train_pie_tiny.batches import training_batch
from tools.train_pie_tiny.export import ASSETS, export
from tools.train_pie_tiny.model import Decoder, Shape
from tools.train_pie_tiny.muon import Muon
from tools.train_pie_tiny.scoring import forced_scores
from tools.train_pie_tiny.tokenizer import build_tokenizer

WARMUP_STEPS = 60
DECAY_SHARE = 0.45
FINAL_RATE = 0.02
REPORT_ITEMS = 50
MUON_RATE = 0.02
ADAM_RATE = 4e-3
PROGRESS = ("next_step", "seconds", "tokens_seen", "longest", "loss")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    steps: int
    tokens: int
    seed: int
    threads: int
    work: Path
    out: Path
    report_every: int
    resume: bool
    export_only: bool


def parse_options() -> Options:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1640)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("/tmp/pie_tiny"))
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--export-only", action="store_true")
    return Options(**vars(parser.parse_args()))


def rate(step: int, steps: int) -> float:
    """The learning-rate factor: warm-up, a plateau, then a straight line down."""
    left = (steps - step) / (DECAY_SHARE * steps)
    return min((step + 1) / WARMUP_STEPS, 1.0, max(FINAL_RATE, left))


def processor() -> str:
    """The machine in words: its cores, their maker and the widest vector unit torch found."""
    model = "processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(": ")[2] if lines else model
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"machine with {os.cpu_count()} cores ({model}, {vectors})"


class Trainer:
    """A run: the model, its optimizers and how far it is."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        torch.set_num_threads(options.threads)
        self.options = options
        self.tokenizer = build_tokenizer(options.seed)
        self.model = Decoder(Shape(vocab_size=self.tokenizer.get_vocab_size()))
        matrices = [p for layer in self.model.layers for p in layer.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        rest = [p for p in self.model.parameters() if id(p) not in chosen]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, lr=MUON_RATE),
            torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
        )
        self.next_step = 0
        self.seconds = 0.0
        self.tokens_seen = 0
        self.longest = 0
        self.loss = float("nan")

    @property
    def checkpoint(self) -> Path:
        return self.options.work / "checkpoint.pt"

    def save(self) -> None:
        """Writes the checkpoint in one move."""
        state = {
            "shape": self.model.shape.as_dict(),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": [getattr(self, name) for name in PROGRESS],
        }
        self.options.work.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def load(self) -> None:
        """Goes back to the last checkpoint."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, value in zip(PROGRESS, state["progress"], strict=True):
            setattr(self, name, value)

    def step(self) -> None:
        """One batch and one update."""
        options = self.options
        batch = training_batch(self.tokenizer, options.seed, self.next_step, options.tokens)
        loss = self.model(batch)
        loss.backward()
        factor = rate(self.next_step, options.steps)
        for optimizer, full in zip(self.optimizers, (MUON_RATE, ADAM_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = full * factor
            optimizer.step()
            optimizer.zero_grad()
        value = loss.item()
        self.loss = value if self.next_step == 0 else 0.98 * self.loss + 0.02 * value
        self.tokens_seen += len(batch.ids)
        self.longest = max(self.longest, batch.buckets[-1].length + 1)
        self.next_step += 1

    def report(self) -> None:
        """Prints one JSON line on the progress."""
        scores = forced_scores(self.model, self.tokenizer, REPORT_ITEMS, seed=1)
        line = {
            "step": self.next_step,
            "seconds": round(self.seconds),
            "tokens": self.tokens_seen,
            "loss": round(self.loss, 4),
            **{task: round(score, 3) for task, score in scores.items()},
        }
        print(json.dumps(line), flush=True)

    def run(self) -> None:
        """All steps that are left, with a checkpoint and a report now and then."""
        while self.next_step < self.options.steps:
            started = time.perf_counter()
            self.step()
            self.seconds += time.perf_counter() - started
            if self.next_step % self.options.report_every == 0:
                self.save()
                self.report()
        self.save()

    def figures(self) -> dict[str, object]:
        """What the card says about the run."""
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "seed": self.options.seed,
            "steps": self.next_step,
            "tokens": self.tokens_seen,
            "longest": self.longest,
            "minutes": round(self.seconds / 60, 1),
            "machine": f"{self.options.threads} threads of a {processor()}",
            "date": datetime.now(UTC).date().isoformat(),
        }


def main() -> None:
    """Trains and exports."""
    options = parse_options()
    trainer = Trainer(options)
    if options.resume or options.export_only:
        trainer.load()
    if not options.export_only:
        trainer.run()
    export(trainer.model, trainer.tokenizer, options.out)
    options.work.joinpath("figures.json").write_text(json.dumps(trainer.figures()) + "\n")
    print(json.dumps(trainer.figures()), flush=True)


if __name__ == "__main__":
    main()
