"""Measures the exported model: `python -m tools.train_pie_tiny.evaluate`.

Prints one JSON line with the score and the number of items of each task. Uses only the model
folder, through `transformers`. With `--card` it also writes the card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tools.train_pie_tiny import grammar, tasks
from tools.train_pie_tiny.card import write_card
from tools.train_pie_tiny.export import ASSETS
from tools.train_pie_tiny.generate import Generator
from tools.train_pie_tiny.toolloop import run_loop
from tools.train_pie_tiny.words import END

EVALUATION_SEED = 2026
LONGEST_SENTENCE = 48


def grammar_score(generator: Generator, n: int) -> float:
    """The share of held-out subjects whose greedy continuation parses and then ends."""
    subjects = [item.segments[0].text for item in tasks.held_out("grammar", n, EVALUATION_SEED)]
    rests = generator.write(subjects, stops=(), limit=LONGEST_SENTENCE)
    texts = [subject + rest for subject, rest in zip(subjects, rests, strict=True)]
    good = [t.endswith(END) and grammar.parses(t.removesuffix(END)) for t in texts]
    return sum(good) / n


def exact_score(generator: Generator, task: str, n: int) -> float:
    """The share of held-out items whose greedy output is exactly the wanted one."""
    items = tasks.held_out(task, n, EVALUATION_SEED)
    return sum(generator.is_exact([item.segments for item in items])) / n


def loop_score(generator: Generator, n: int) -> float:
    """The share of held-out one- and two-hop questions a free-running tool loop answers."""
    half = n // 2
    items = tasks.held_out("react", half, EVALUATION_SEED)
    items += tasks.held_out("react2", n - half, EVALUATION_SEED)
    answers = run_loop(generator, items)
    return sum(a == item.answer for a, item in zip(answers, items, strict=True)) / n


def measure(folder: Path, n: int) -> dict[str, float]:
    """Every score the card states."""
    generator = Generator(folder)
    scores = {
        task: grammar_score(generator, n) if task == "grammar" else exact_score(generator, task, n)
        for task in tasks.SCORED
    }
    scores["tool_loop"] = loop_score(generator, n)
    return scores | {task: exact_score(generator, task, n) for task in tasks.BONUS}


def main() -> None:
    """Evaluates, prints, and writes the card if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ASSETS)
    parser.add_argument("--n", type=int, default=200, help="held-out items a task")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--card", type=Path, help="figures.json of the run: write the card")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scores = measure(options.model, options.n)
    print(json.dumps({task: {"score": score, "n": options.n} for task, score in scores.items()}))
    if options.card is not None:
        figures = json.loads(options.card.read_text())
        write_card(options.model, scores, options.n, figures)


if __name__ == "__main__":
    main()
