"""A language model in twenty lines: what comes next is a fixed function of all tokens so far, and of nothing else."""

from __future__ import annotations

import json
import math
import re
import zlib
from functools import lru_cache
from random import Random

END, SYSTEM, USER, ASSISTANT, TOOL = range(256, 261)
SPECIALS = {"<|end|>": END, "<|system|>": SYSTEM, "<|user|>": USER, "<|assistant|>": ASSISTANT, "<|tool|>": TOOL}
NAMES = {token: name for name, token in SPECIALS.items()}
PATTERN = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")
VOCABULARY = 261
#: tokens that the model may say: some letters, a two-byte character's halves, the end
SAYABLE = [*b"abcdefgh .", 0xC3, 0xA9, END]


def chain(previous: int, token: int) -> int:
    """The digest of a sequence that goes on with `token`; 0 is that of the empty one."""
    return zlib.crc32(token.to_bytes(4, "little"), previous ^ 0x5EED)


def chain_of(tokens: list[int]) -> int:
    digest = 0
    for token in tokens:
        digest = chain(digest, token)
    return digest


@lru_cache(maxsize=100_000)
def distribution(digest: int) -> tuple[tuple[int, float], ...]:
    """(token, probability) of the next token, by falling probability."""
    rng = Random(digest)
    weights = {token: math.exp(rng.gauss(0, 2)) for token in SAYABLE}
    weights[END] *= 0.3
    total = sum(weights.values())
    return tuple(sorted(((t, w / total) for t, w in weights.items()), key=lambda pair: -pair[1]))


def sample(digest: int, position: int, temperature: float, top_k: int, seed: int) -> int:
    """Greedy at temperature 0; else a draw that depends on the seed and the position."""
    choices = distribution(digest)[: top_k or None]
    if temperature == 0:
        return choices[0][0]
    rng = Random(f"{seed}:{position}")
    tokens, weights = zip(*((t, p ** (1 / temperature)) for t, p in choices), strict=True)
    return rng.choices(tokens, weights)[0]


def continuation(
    tokens: list[int],
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    stop: frozenset[int] = frozenset({END}),
) -> list[int]:
    """What the model says after `tokens`, without pages or hosts: the reference."""
    said: list[int] = []
    digest = chain_of(tokens)
    while len(said) < max_tokens and not (said and said[-1] in stop):
        said.append(sample(digest, len(tokens) + len(said) - 1, temperature, top_k, seed))
        digest = chain(digest, said[-1])
    return said


def tokenize(text: str) -> list[int]:
    tokens: list[int] = []
    for part in PATTERN.split(text):
        tokens += [SPECIALS[part]] if part in SPECIALS else part.encode()
    return tokens


def detokenize(tokens: list[int], *, skip_special: bool) -> str:
    return to_bytes(tokens, skip_special=skip_special).decode(errors="replace")


def to_bytes(tokens: list[int], *, skip_special: bool) -> bytes:
    special = (lambda token: b"") if skip_special else (lambda token: NAMES[token].encode())
    return b"".join(bytes([token]) if token < 256 else special(token) for token in tokens)


def render_chat(messages: str, add_generation_prompt: bool) -> str:
    turns = [f"<|{m['role']}|>{m['content']}<|end|>" for m in json.loads(messages)]
    return "".join(turns) + "<|assistant|>" * add_generation_prompt
