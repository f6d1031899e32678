"""A runner whose pages hold digests of all tokens before: whoever builds on the wrong KV gets another text.

What comes next is a fixed function of the tokens so far, of the seed and of the draw's counter; `reference` is the
same without pages.
"""

from __future__ import annotations

import zlib
from random import Random

import numpy as np

from tests.support.rows import RowsAsItems

VOCAB = 256
FIRST, SAYABLE = 40, 12
"""Tokens that are said: few, so that n-grams repeat."""


class WrongKv(AssertionError):
    """An item would read slots that do not hold the sequence before it."""


def chain(digest: int, token: int) -> int:
    return zlib.crc32(token.to_bytes(4, "little"), digest ^ 0x5EED)


def draw(digest: int, counter: int, seed: int, temperature: float, allowed: bytes | None = None) -> int:
    rng = Random(digest % 7 if temperature == 0 else f"{digest % 7}:{counter}:{seed}")
    tokens = [FIRST + rng.randrange(SAYABLE) for _ in range(64)]
    if allowed is not None:
        tokens = [t for t in [*tokens, *range(VOCAB)] if allowed[t // 8] >> t % 8 & 1]
    return tokens[0]


def score(digest: int, token: int) -> float:
    return -1.0 - (chain(digest, token) % 1000) / 1000


def reference(prompt: list[int], count: int, seed: int = 0, temperature: float = 0.0) -> list[int]:
    """What is said after the prompt, by forward and sample alone."""
    digest, said = 0, []
    for token in prompt:
        digest = chain(digest, token)
    for _ in range(count):
        said.append(draw(digest, len(prompt) + len(said) - 1, seed, temperature))
        digest = chain(digest, said[-1])
    return said


class DigestRunner(RowsAsItems):
    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.slots: dict[tuple[int, int], tuple[int, int]] = {}  # page and offset: token, digest up to it
        self.host: dict[int, list[tuple[int, int] | None]] = {}  # by slot: the page that was swapped to it
        self.num_steps = 0
        self.batches: list[int] = []
        self.fail_at: int | None = None

    def step(self, items, outputs):
        self.num_steps += 1
        self.batches.append(len(items))
        if self.num_steps == self.fail_at:
            raise RuntimeError("out of luck")
        return [self._one(item, wanted) for item, wanted in zip(items, outputs, strict=True)]

    def _one(self, item, wanted):
        if item.mask is not None:
            return self._masked(item, wanted)
        digest = 0
        for position in range(item.kv_len):
            held = self.slots.get(self._slot(item, position))
            if held is None or held[1] != chain(digest, held[0]):
                raise WrongKv(f"slot {position} of {item} holds {held}")
            digest = held[1]
        digests = []
        for index, token in enumerate(item.tokens.tolist()):
            digest = chain(digest, token)
            digests.append(digest)
            self.slots[self._slot(item, item.kv_len + index)] = (token, digest)
        return [self._answer(item, request, digests[request.row - item.start]) for request in wanted]

    def _masked(self, item, wanted):
        """Rows read the tokens of visible slots alone: of hidden ones there may be none."""
        num_tokens, total = len(item.tokens), item.kv_len + len(item.tokens)
        bits = np.unpackbits(np.frombuffer(item.mask, np.uint8), count=num_tokens * total, bitorder="little")
        digests = []
        for index, token in enumerate(item.tokens.tolist()):
            self.slots[self._slot(item, item.kv_len + index)] = (token, 0)
            digest = 0
            for position in np.flatnonzero(bits.reshape(num_tokens, total)[index, : item.kv_len + index + 1]).tolist():
                digest = chain(digest, self.slots[self._slot(item, position)][0])
            digests.append(digest)
        return [self._answer(item, request, digests[request.row - item.start]) for request in wanted]

    def _slot(self, item, position: int) -> tuple[int, int]:
        return int(item.pages[position // self.page_size]), position % self.page_size

    def _answer(self, item, request, digest: int):
        row, sampler = request.row - item.start, request.sampler
        counter = item.kv_len + row if item.counters is None else int(item.counters[row])
        token = draw(digest, counter, sampler.seed, sampler.temperature, sampler.allowed or None)
        if request.is_scored:
            return np.array([token], "<u4"), np.array([score(digest, token)], "<f4")
        return token

    def copy_tokens(self, ranges):
        found = [[self.slots.get((src, start + i)) for i in range(count)] for src, start, _, _, count in ranges]
        for (_, _, dst, start, count), held in zip(ranges, found, strict=True):
            for i in range(count):
                if held[i] is not None:
                    self.slots[dst, start + i] = held[i]
                else:
                    self.slots.pop((dst, start + i), None)

    def swap_out(self, pages, slots):
        for page, slot in zip(pages.tolist(), slots.tolist(), strict=True):
            self.host[slot] = [self.slots.get((page, offset)) for offset in range(self.page_size)]

    def swap_in(self, slots, pages):
        for slot, page in zip(slots.tolist(), pages.tolist(), strict=True):
            for offset, held in enumerate(self.host[slot]):
                if held is None:
                    self.slots.pop((page, offset), None)
                else:
                    self.slots[page, offset] = held
