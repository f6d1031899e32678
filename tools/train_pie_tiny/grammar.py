"""A small fixed English grammar with number agreement: sampling and parsing.

S -> NP VP "."    VP -> Vi | Vi PP | Vt NP | Vt NP PP    PP -> P NP    NP -> Det Adj{0,2} Noun
The subject and its verb agree; the language is regular, so a regular expression parses it.
"""

from __future__ import annotations

import re
from random import Random

from tools.train_pie_tiny.words import is_held_out

SINGULAR_DETERMINERS = ("the", "a", "every")
PLURAL_DETERMINERS = ("the", "two", "some", "many")
ADJECTIVES = ("small", "big", "red", "green", "quick", "lazy", "happy", "quiet", "young", "brave", "kind", "proud")
NOUNS = ("cat", "dog", "bird", "horse", "king", "queen", "child", "farmer", "doctor", "robot", "tree", "river")
TRANSITIVE = ("see", "like", "follow", "help", "find", "hear", "want", "draw")
INTRANSITIVE = ("sleep", "run", "sing", "wait", "jump", "dance")
PREPOSITIONS = ("near", "under", "behind", "with", "by")


def plural(noun: str) -> str:
    """The plural of one of `NOUNS`."""
    return "children" if noun == "child" else noun + "s"


def verb(stem: str, *, is_plural: bool) -> str:
    """The present-tense form of a verb that agrees with its subject."""
    return stem if is_plural else stem + "s"


def noun_phrase(rng: Random, *, is_plural: bool, is_held: bool = False) -> str:
    """A noun phrase; a held-out one has an adjective next to a noun it never met in training."""
    while True:
        adjectives = rng.sample(ADJECTIVES, 1 if is_held else rng.choice((0, 1, 1, 2)))
        noun = rng.choice(NOUNS)
        if any(is_held_out("np", adjective, noun) for adjective in adjectives) == is_held:
            break
    determiner = rng.choice(PLURAL_DETERMINERS if is_plural else SINGULAR_DETERMINERS)
    return " ".join((determiner, *adjectives, plural(noun) if is_plural else noun))


def sentence(rng: Random, *, is_held: bool = False) -> tuple[str, str]:
    """A subject and the rest of its sentence, which starts with a space and ends with a dot."""
    is_plural = rng.random() < 0.5
    subject = noun_phrase(rng, is_plural=is_plural, is_held=is_held)
    is_transitive = rng.random() < 0.6
    parts = [verb(rng.choice(TRANSITIVE if is_transitive else INTRANSITIVE), is_plural=is_plural)]
    if is_transitive:
        parts.append(noun_phrase(rng, is_plural=rng.random() < 0.5))
    if rng.random() < 0.4:
        parts += [rng.choice(PREPOSITIONS), noun_phrase(rng, is_plural=rng.random() < 0.5)]
    return subject, " " + " ".join(parts) + "."


def _any(words: tuple[str, ...]) -> str:
    return "(?:" + "|".join(words) + ")"


def _pattern() -> re.Pattern[str]:
    adjectives = f"(?: {_any(ADJECTIVES)}){{0,2}} "
    singular = _any(SINGULAR_DETERMINERS) + adjectives + _any(NOUNS)
    plurals = _any(PLURAL_DETERMINERS) + adjectives + _any(tuple(plural(n) for n in NOUNS))
    either = f"(?:{singular}|{plurals})"
    tail = f"(?: {_any(PREPOSITIONS)} {either})?"

    def predicate(*, is_plural: bool) -> str:
        transitive = _any(tuple(verb(v, is_plural=is_plural) for v in TRANSITIVE))
        intransitive = _any(tuple(verb(v, is_plural=is_plural) for v in INTRANSITIVE))
        return f" (?:{intransitive}|{transitive} {either}){tail}"

    one, several = predicate(is_plural=False), predicate(is_plural=True)
    return re.compile(rf"(?:{singular}{one}|{plurals}{several})\.")


def parses(text: str) -> bool:
    """True if `text` is exactly one sentence of the grammar."""
    return _pattern().fullmatch(text) is not None
