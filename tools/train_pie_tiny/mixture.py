"""What one training document is: the weights of the tasks, turns, and the curriculum.

The tasks that are learnt late (copying, recall, sums at once) weigh more after `FIRST_STEPS`.
"""

from __future__ import annotations

from random import Random

from tools.train_pie_tiny import tasks
from tools.train_pie_tiny.tasks import SCORED, Item, Task
from tools.train_pie_tiny.words import RECALL_KEYS

FIRST_WEIGHTS: dict[str, float] = {
    "add2": 1.0,
    "add3": 1.4,
    "compare": 1.2,
    "react": 0.8,
    "react2": 0.6,
    "tool_call": 0.8,
    "extract": 0.9,
    "repeat": 1.0,
    "sort": 1.2,
    "merge": 1.2,
    "recall": 1.2,
    "grammar": 0.7,
    "plain_add": 3.0,
    "add2_direct": 0.5,
    "add3_direct": 0.5,
    "greet": 0.1,
}
LATER_WEIGHTS = FIRST_WEIGHTS | {
    "add2": 0.7,
    "react": 0.4,
    "extract": 1.2,
    "repeat": 2.0,
    "sort": 1.4,
    "merge": 1.4,
    "recall": 1.4,
    "plain_add": 7.0,
    "add2_direct": 1.0,
}
FIRST_STEPS = 600
SHORT_CHATS = ("add2", "compare", "react", "extract", "repeat", "sort", "tool_call")
MAKERS: dict[str, Task] = SCORED | tasks.BONUS | {"greet": tasks.greet}
SYSTEM_SHARE = 0.1
SECOND_TURN_SHARE = 0.1
CURRICULUM_STEPS = 980
SHORTEST_CURRICULUM = 8
NUM_QUERIES = (1, 4, 8, 12, 20)


def longest_recall(step: int) -> int:
    """The largest number of recall lines at training step `step`."""
    grown = min(1.0, step / CURRICULUM_STEPS)
    return round(SHORTEST_CURRICULUM + grown * (len(RECALL_KEYS) - SHORTEST_CURRICULUM))


def recall_document(rng: Random, step: int) -> Item:
    """A recall context with many questions: more targets for the same reading."""
    longest = longest_recall(step)
    segments = tasks.recall_items(rng, 3, longest, rng.choice(NUM_QUERIES), is_held=False)
    return Item("recall", segments)


def document(rng: Random, step: int) -> Item:
    """One document of training step `step`."""
    weights = FIRST_WEIGHTS if step < FIRST_STEPS else LATER_WEIGHTS
    task = rng.choices(tuple(weights), tuple(weights.values()))[0]
    if task == "recall":
        return recall_document(rng, step)
    item = MAKERS[task](rng, is_held=False)
    if task in ("grammar", "plain_add"):
        return item
    segments = item.segments
    if rng.random() < SYSTEM_SHARE:
        segments = (tasks.system_turn(rng), *segments)
    if rng.random() < SECOND_TURN_SHARE:
        segments += MAKERS[rng.choice(SHORT_CHATS)](rng, is_held=False).segments
    return Item(task, segments)
