"""Random texts under a matcher, for tests of grammars."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pieray.assets import model_folder
from pieray.grammar import Matcher
from pieray.models.tokenizer import Tokenizer, TokenizerSpec

SPEC = TokenizerSpec.from_folder(model_folder("pie-tiny"))
TOKENIZER = Tokenizer(SPEC)
VOCAB = TOKENIZER.vocab_size
END = SPEC.eos_ids[0]
HELD: dict[str, list[Any]] = json.loads((Path(__file__).parent / "held_grammars.json").read_text(encoding="utf-8"))


def allowed(matcher: Matcher) -> list[int]:
    """The tokens of the mask."""
    bits = np.unpackbits(np.frombuffer(matcher.mask_bytes(), np.uint8), bitorder="little")
    assert not bits[matcher.grammar.vocab_size :].any(), "padding bits are zero"
    return [int(token) for token in np.flatnonzero(bits)]


def draw(matcher: Matcher, rng: Random, most: int = 200, patience: int = 24) -> list[int]:
    """Tokens drawn evenly from the masks until the stop token; after `patience` ones, that as soon as it may be."""
    tokens: list[int] = []
    while len(tokens) < most:
        choices = allowed(matcher)
        assert choices, f"nothing may follow {TOKENIZER.decode(tokens)!r}"
        token = END if END in choices and len(tokens) >= patience else rng.choice(choices)
        assert matcher.accept([token]) == 1, "what the mask allows is accepted"
        if token == END:
            return tokens
        tokens.append(token)
    raise AssertionError(f"no end in {most} tokens: {TOKENIZER.decode(tokens)!r}")


def text_of(tokens: list[int]) -> str:
    return b"".join(TOKENIZER.token_bytes(token) for token in tokens).decode()
