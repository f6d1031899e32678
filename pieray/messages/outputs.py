"""What is asked of the rows of a pass: built where a guest's input is checked, and the same up to the sampler.

They travel within other messages (see `frame.py`).  Values are checked there alone: behind it, a number out of range
draws badly and harms nobody; what would read outside of an array is looked at by the runner.

`row` counts tokens of the pass, from 0; below 0, from the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pieray.messages.frame import Message, register


@register(100)
@dataclass(frozen=True, slots=True)
class Sampler(Message):
    """A sampler chain: a program, bias, allowed tokens, temperature, top-k, top-p, min-p, typical-p, or a program in
    place of these.  The defaults are greedy."""

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int = 0  # of draws, with the place in the sequence
    bias_tokens: bytes = b""  # u32, distinct
    bias_values: bytes = b""  # f32, one per token, added to its logit; -inf bans it
    allowed: bytes = b""  # packed bits [vocab], least significant first, 1 = may be drawn; b"": all
    processor: int = 0  # the inferlet's number for a tensor program that the logits go through first; 0: none
    program: int = 0  # of one in place of temperature and filters, whose result is drawn from; 0: none

    @property
    def has_programs(self) -> bool:
        return bool(self.processor or self.program)


GREEDY = Sampler()


@register(101)
@dataclass(frozen=True, slots=True)
class Sample(Message):
    """Draw the next token -> u32[1].  The draw behind the token at position p has counter p."""

    row: int = -1
    sampler: Sampler = GREEDY
    ticket: int = 0
    is_scored: bool = False  # with its log-probability before bias, temperature and filters -> [u32[1], f32[1]]


@register(102)
@dataclass(frozen=True, slots=True)
class Distribution(Message):
    """The k most likely next tokens and their probabilities, in order -> [u32[k], f32[k]]; k = 0: all."""

    row: int = -1
    k: int = 0
    ticket: int = 0


@register(103)
@dataclass(frozen=True, slots=True)
class Logprobs(Message):
    """log p of each of the tokens as the next one -> f32[n]."""

    row: int = -1
    token_ids: bytes = b""  # u32
    ticket: int = 0


@register(104)
@dataclass(frozen=True, slots=True)
class Logits(Message):
    """The raw logits -> f32[vocab]."""

    row: int = -1
    ticket: int = 0


@register(105)
@dataclass(frozen=True, slots=True)
class Entropy(Message):
    """Entropy of the next token, in nats -> f32[1]."""

    row: int = -1
    ticket: int = 0


@register(106)
@dataclass(frozen=True, slots=True)
class Hidden(Message):
    """The last hidden state, behind the final norm -> f32[hidden size]."""

    row: int = -1
    ticket: int = 0


Output: TypeAlias = Sample | Distribution | Logprobs | Logits | Entropy | Hidden
