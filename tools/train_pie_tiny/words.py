"""Made-up words, chat markers and the rule that splits training from held-out material."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from random import Random
from string import ascii_lowercase
from typing import TypeVar

USER = "<|user|>"
ASSISTANT = "<|assistant|>"
TOOL = "<|tool|>"
SYSTEM = "<|system|>"
END = "<|end|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT, TOOL)

SYLLABLES = tuple(c + v for c in "bdklmnrstv" for v in "aeio")
RECALL_KEYS = tuple(ascii_lowercase) + SYLLABLES
ENGLISH = (  # noqa: SIM905 - one word a line reads worse
    "red green blue black white gold tree river stone house garden window table bread water fire "
    "moon sun star cloud rain snow wind sea ship road hill lamp book song bird fish horse apple"
).split()

HELD_OUT_ONE_IN = 10
T = TypeVar("T")


def is_held_out(*parts: object) -> bool:
    """True for the one in ten keys that training never shows; stable across runs and machines."""
    text = "|".join(str(part) for part in parts)
    return zlib.crc32(text.encode()) % HELD_OUT_ONE_IN == 0


def draw(make: Callable[[], T], key: Callable[[T], tuple[object, ...]], *, is_held: bool) -> T:
    """Calls `make` until the split of its value is the wanted one."""
    while True:
        value = make()
        if is_held_out(*key(value)) == is_held:
            return value


def word(rng: Random, *, is_held: bool) -> str:
    """A made-up word of two or three syllables."""
    return draw(
        lambda: "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3))), lambda w: ("word", w), is_held=is_held
    )


def name(rng: Random, *, is_held: bool) -> str:
    """A made-up proper name."""
    return word(rng, is_held=is_held).capitalize()


def number(rng: Random, digits: int) -> int:
    """A number of exactly `digits` digits; one-digit numbers include 0."""
    low = 0 if digits == 1 else 10 ** (digits - 1)
    return rng.randint(low, 10**digits - 1)


def pair(rng: Random, digits: int, *, is_held: bool, shorter: float = 0.2) -> tuple[int, int]:
    """Two operands of `digits` digits (each one digit shorter with chance `shorter`).

    The split ignores the order and the task: a held-out pair is trained nowhere, either way round.
    """

    def make() -> tuple[int, int]:
        first, second = (number(rng, digits - 1 if digits > 1 and rng.random() < shorter else digits) for _ in range(2))
        return first, second

    return draw(make, lambda p: ("pair", min(p), max(p)), is_held=is_held)
