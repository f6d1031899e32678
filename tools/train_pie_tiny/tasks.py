"""The items pie-tiny is trained and measured on: one small function per task.

An item is a list of segments; the model writes those marked `is_model_output`, a host or a
user writes the others. Each task takes `is_held`: held-out items use pairs, words or lists
that training never shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple, Protocol

from tools.train_pie_tiny import grammar
from tools.train_pie_tiny.words import (
    ASSISTANT,
    END,
    ENGLISH,
    RECALL_KEYS,
    SYSTEM,
    TOOL,
    USER,
    draw,
    name,
    number,
    pair,
    word,
)

THINK = "Think step by step."
OPERATIONS = {"+": "plus", "-": "minus", "*": "times"}


class Segment(NamedTuple):
    """A run of text and who writes it."""

    text: str
    is_model_output: bool


@dataclass(frozen=True, slots=True)
class Item:
    """One sample; `ages` is what the lookup tool knows, `answer` what a tool loop must reach."""

    task: str
    segments: tuple[Segment, ...]
    ages: tuple[tuple[str, int], ...] = ()
    answer: str = ""


class Task(Protocol):
    """Makes one item from a random stream."""

    def __call__(self, rng: Random, *, is_held: bool) -> Item: ...


def chat(task: str, question: str, *replies: str, answer: str = "") -> Item:
    """A user turn and the assistant's reply; odd entries of `replies` are written by the host."""
    parts = [Segment(f"{USER}{question}{END}{ASSISTANT}", False)]
    parts += [Segment(text, index % 2 == 0) for index, text in enumerate(replies)]
    parts[-1] = Segment(parts[-1].text + END, True)
    return Item(task, tuple(parts), answer=answer)


def column_steps(a: int, b: int) -> str:
    """Schoolbook addition from the last digit: `digit+digit+carry=sum` for each column."""
    steps, digits, carry = [], "", 0
    width = max(len(str(a)), len(str(b)))
    for x, y in zip(reversed(f"{a:0{width}}"), reversed(f"{b:0{width}}"), strict=True):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}+{carry}={total}")
        carry, digits = total // 10, str(total % 10) + digits
    return "; ".join(steps) + f"; answer {str(carry) if carry else ''}{digits}"


def add2(rng: Random, *, is_held: bool) -> Item:
    """Add numbers of up to two digits, column by column."""
    a, b = pair(rng, 2, is_held=is_held)
    return chat("add2", f"{a}+{b}=? {THINK}", column_steps(a, b))


def add3(rng: Random, *, is_held: bool) -> Item:
    """Add numbers of up to three digits, column by column."""
    a, b = pair(rng, 3, is_held=is_held)
    return chat("add3", f"{a}+{b}=? {THINK}", column_steps(a, b))


def add2_direct(rng: Random, *, is_held: bool) -> Item:
    """Add numbers of up to two digits at once."""
    a, b = pair(rng, 2, is_held=is_held)
    return chat("add2_direct", f"{a}+{b}=?", str(a + b))


def add3_direct(rng: Random, *, is_held: bool) -> Item:
    """Add numbers of up to three digits at once: little trained, so that thinking pays."""
    a, b = pair(rng, 3, is_held=is_held)
    return chat("add3_direct", f"{a}+{b}=?", str(a + b))


def plain_add(rng: Random, *, is_held: bool) -> Item:
    """Plain text, no chat markers: `12+7=` goes on with `19`."""
    a, b = pair(rng, 2, is_held=is_held, shorter=0.25)
    return Item("plain_add", (Segment(f"{a}+{b}=", False), Segment(f"{a + b}{END}", True)))


def compare(rng: Random, *, is_held: bool) -> Item:
    """Name the larger of two different numbers of up to three digits."""
    a, b = pair(rng, rng.choice((2, 2, 3)), is_held=is_held)
    if a == b:
        return compare(rng, is_held=is_held)
    return chat("compare", f"Which is larger, {a} or {b}?", str(max(a, b)))


def calculate(a: int, operation: str, b: int) -> int:
    """What the calculator tool answers."""
    return {"+": a + b, "-": a - b, "*": a * b}[operation]


def react(rng: Random, *, is_held: bool) -> Item:
    """Answer with one call of the calculator."""
    a, b = pair(rng, 2, is_held=is_held)
    operation = rng.choice("+-*")
    value = calculate(a, operation, b)
    words = f"{a} {OPERATIONS[operation]} {b}"
    asked = rng.choice((f"What is {words}?", f"Compute {words}.", f"How much is {words}?"))
    action = f"Thought: I should calculate.\nAction: calc({a}{operation}{b})\nObservation:"
    return chat("react", f"{asked} Use tools.", action, f" {value}\n", f"Answer: {value}", answer=str(value))


def react2(rng: Random, *, is_held: bool) -> Item:
    """Look two ages up, then add them with the calculator."""
    one, two = name(rng, is_held=is_held), name(rng, is_held=is_held)
    if one == two:
        return react2(rng, is_held=is_held)
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    item = chat(
        "react2",
        f"How old are {one} and {two} together? Use tools.",
        f"Thought: I should look up {one}.\nAction: lookup({one})\nObservation:",
        f" {a}\n",
        f"Thought: I should look up {two}.\nAction: lookup({two})\nObservation:",
        f" {b}\n",
        f"Thought: I should calculate.\nAction: calc({a}+{b})\nObservation:",
        f" {a + b}\n",
        f"Answer: {a + b}",
        answer=str(a + b),
    )
    return replace(item, ages=((one, a), (two, b)))


def _tool_request(rng: Random, *, is_held: bool) -> tuple[str, str, dict[str, object]]:
    """A request in words, the tool it needs and the arguments."""
    who = name(rng, is_held=is_held)
    amount = draw(lambda: rng.randint(1, 99), lambda n: ("amount", n), is_held=is_held)
    requests: tuple[tuple[str, str, dict[str, object]], ...] = (
        (f"What is the weather in {who}?", "weather", {"city": who}),
        (f"Send {amount} coins to {who}.", "send", {"to": who, "amount": amount}),
        (f"Set a timer for {amount} minutes.", "timer", {"minutes": amount}),
    )
    return rng.choice(requests)


def tool_call(rng: Random, *, is_held: bool) -> Item:
    """Call a tool as JSON, then report what the tool role answered."""
    question, tool, arguments = _tool_request(rng, is_held=is_held)
    call = json.dumps({"name": tool, "arguments": arguments})
    result = f"{number(rng, 2)} degrees" if tool == "weather" else "done"
    host = f"{TOOL}{result}{END}{ASSISTANT}"
    return chat("tool_call", question, call + END, host, f"The result: {result}.")


def extract(rng: Random, *, is_held: bool) -> Item:
    """Extract the fields of a sentence as JSON."""
    who, city = name(rng, is_held=is_held), name(rng, is_held=is_held)
    age = rng.randint(1, 99)
    sentence = rng.choice(
        (
            f"{who} is {age} years old and lives in {city}.",
            f"In {city} lives {who}, aged {age}.",
            f"My friend {who} from {city} is {age}.",
        )
    )
    fields = json.dumps({"name": who, "age": age, "city": city})
    return chat("extract", f"Extract JSON: {sentence}", fields)


def repeat(rng: Random, *, is_held: bool) -> Item:
    """Repeat a phrase of made-up words, English words and numbers."""
    kinds: tuple[Callable[[], str], ...] = (
        lambda: word(rng, is_held=is_held),
        lambda: rng.choice(ENGLISH),
        lambda: str(number(rng, 2)),
    )
    parts = [word(rng, is_held=is_held)]
    parts += [rng.choices(kinds, (6, 2, 1))[0]() for _ in range(rng.randint(0, 5))]
    phrase = " ".join(rng.sample(parts, len(parts)))
    return chat("repeat", f"Repeat: {phrase}", phrase)


def _digits(rng: Random, low: int, high: int) -> list[int]:
    return [rng.randint(0, 9) for _ in range(rng.randint(low, high))]


def _join(values: list[int]) -> str:
    return " ".join(map(str, values))


def sort(rng: Random, *, is_held: bool) -> Item:
    """Sort three to eight digits."""
    values = draw(lambda: _digits(rng, 3, 8), lambda v: ("sort", v), is_held=is_held)
    return chat("sort", f"Sort: {_join(values)}", _join(sorted(values)))


def sort_long(rng: Random, *, is_held: bool) -> Item:
    """Sort sixteen digits at once; never trained, so that sorting parts and merging pays."""
    values = draw(lambda: _digits(rng, 16, 16), lambda v: ("sort", v), is_held=is_held)
    return chat("sort_long", f"Sort: {_join(values)}", _join(sorted(values)))


def merge(rng: Random, *, is_held: bool) -> Item:
    """Merge two sorted lists of two to eight digits each."""
    one, two = draw(
        lambda: (sorted(_digits(rng, 2, 8)), sorted(_digits(rng, 2, 8))),
        lambda lists: ("merge", *sorted(lists)),
        is_held=is_held,
    )
    return chat("merge", f"Merge: {_join(one)} | {_join(two)}", _join(sorted(one + two)))


def recall_items(rng: Random, low: int, high: int, queries: int, *, is_held: bool) -> tuple[Segment, ...]:
    """`low` to `high` lines `key=value`, then `queries` questions, one turn each.

    The number of lines is log-uniform. A held-out question asks for a pair of key and value
    that no training context held.
    """
    count = min(high, round(math.exp(rng.uniform(math.log(low), math.log(high + 0.5)))))
    keys = rng.sample(RECALL_KEYS, count)
    asked = rng.sample(keys, min(queries, count))

    def value(key: str) -> str:
        held = is_held and key in asked
        return draw(lambda: f"{rng.randint(0, 99):02}", lambda v: ("kv", key, v), is_held=held)

    values = {key: value(key) for key in keys}
    lines = "".join(f"{key}={values[key]}\n" for key in keys)
    segments: list[Segment] = []
    for index, key in enumerate(asked):
        prefix = lines if index == 0 else ""
        segments.append(Segment(f"{USER}{prefix}{key}?{END}{ASSISTANT}", False))
        segments.append(Segment(f"{key}={values[key]}{END}", True))
    return tuple(segments)


def recall(rng: Random, *, is_held: bool) -> Item:
    """Look one value up among 3 to 66 lines `key=value` (up to about 340 tokens)."""
    return Item("recall", recall_items(rng, 3, len(RECALL_KEYS), 1, is_held=is_held))


def recall_long(rng: Random, *, is_held: bool) -> Item:
    """Look one value up among 40 to 66 lines (about 200 to 340 tokens)."""
    return Item("recall_long", recall_items(rng, 40, len(RECALL_KEYS), 1, is_held=is_held))


def complete_grammar(rng: Random, *, is_held: bool) -> Item:
    """Plain text, no chat markers: continue a subject to a sentence of the grammar."""
    subject, rest = grammar.sentence(rng, is_held=is_held)
    return Item("grammar", (Segment(subject, not is_held), Segment(rest + END, True)))


def greet(rng: Random, *, is_held: bool) -> Item:  # noqa: ARG001 - the contract of Task
    """Small talk for demonstrations; never scored."""
    question, reply = rng.choice(
        (
            (rng.choice(("Hello", "Hello!", "Hi", "Hi!")), "Hello! I am pie-tiny."),
            ("Who are you?", "I am pie-tiny, a very small model."),
            ("What can you do?", "I can add, sort, merge, repeat, recall and call tools."),
            (rng.choice(("Thanks", "Thank you!")), "You are welcome."),
        )
    )
    return chat("greet", question, reply)


SCORED: dict[str, Task] = {
    "add2": add2,
    "add3": add3,
    "compare": compare,
    "react": react,
    "react2": react2,
    "tool_call": tool_call,
    "extract": extract,
    "repeat": repeat,
    "sort": sort,
    "merge": merge,
    "recall": recall,
    "grammar": complete_grammar,
    "plain_add": plain_add,
}
BONUS: dict[str, Task] = {
    "add2_direct": add2_direct,
    "add3_direct": add3_direct,
    "sort_long": sort_long,
    "recall_long": recall_long,
}


def held_out(task: str, n: int, seed: int = 0) -> list[Item]:
    """`n` items of `task` that training never shows, the same for the same seed."""
    makers = SCORED | BONUS
    if task not in makers:
        raise ValueError(f"unknown task {task!r}; there are: {', '.join(makers)}")
    rng = Random(f"{task}:{seed}")
    return [makers[task](rng, is_held=True) for _ in range(n)]


def system_turn(rng: Random) -> Segment:
    """A system message, of no consequence for the reply."""
    words = [rng.choice(ENGLISH) for _ in range(rng.randint(1, 4))]
    usual = ("You are a helpful assistant.", "You are pie-tiny.", f"Be kind. {' '.join(words)}.")
    return Segment(f"{SYSTEM}{rng.choice(usual)}{END}", False)
