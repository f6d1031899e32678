"""What the work of a step costs, in seconds: predicted before it runs, learned from the steps that have run.

A step's time is taken to be a sum over kinds of work, each an amount times what one costs on this model and device.
The costs begin higher than they are likely to be, so that the first steps with a new kind of work are cut too small,
not too large, and follow what is measured: a Kalman filter over their logarithms, with a variance for each alone.  So
costs stay above 0, and an error is laid on the kinds that make up the step, mostly on those of which least is known.
One step moves a cost by a bounded factor: one that the system held up teaches little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

from pieray.messages import Distribution, Entropy, Hidden, Logits, Logprobs, Output, Sample, Sampler

FIRST_VARIANCE = 4.0
NOISE = 0.25
"""Variance of a step's logarithm about what it would be undisturbed."""
DRIFT = 1e-4
"""What a step adds to the variance of a cost."""
MOST_CHANGE = math.log(2.0)
"""A step that took more than twice, or less than half, of what was predicted counts as one that took that."""


class Kind(IntEnum):
    """Kinds of work, and what one is."""

    STEP = 0  # the step itself, whatever is in it
    ITEMS = 1  # a command in it
    TOKENS = 2
    ATTENTION = 3  # a token times a slot that it attends to
    GREEDY = 4  # a row whose most likely token is taken
    DRAWS = 5  # a row that is sampled
    FILTERED = 6  # a row whose tokens are masked or biased before that
    DISTRIBUTIONS = 7  # a row
    LOGPROBS = 8
    ENTROPIES = 9
    LOGITS = 10
    HIDDEN = 11
    VALUES = 12  # a token of a row's distribution, log-probabilities or bias
    MASK_BITS = 13
    BYTES = 14  # of answers
    COPIES = 15  # a range of slots
    LOOKUPS = 16  # an embedding
    COMMANDS = 17  # a step that has commands, not rows of the decode table alone
    SWAPS = 18  # a page swapped to host memory or back
    PROGRAMS = 19  # a million operations of tensor programs


Work: TypeAlias = list[float]
"""An amount of each kind."""


def no_work() -> Work:
    return [0.0] * len(Kind)


def first_guess(vocab_size: int) -> list[float]:
    """Seconds for one of each kind before anything is measured: more than a small model takes on one CPU core."""
    row = 1e-5 + 2e-8 * vocab_size  # one pass over the logits
    seconds = dict.fromkeys(Kind, 2.0 * row) | {
        Kind.STEP: 5e-4,
        Kind.ITEMS: 1e-4,
        Kind.TOKENS: 2e-4,
        Kind.ATTENTION: 3e-7,
        Kind.GREEDY: row,
        Kind.DISTRIBUTIONS: 5.0 * row,
        Kind.VALUES: 1e-7,
        Kind.MASK_BITS: 1e-8,
        Kind.BYTES: 2e-9,
        Kind.COPIES: 2e-5,
        Kind.LOOKUPS: 1e-6,
        Kind.COMMANDS: 2e-3,
        Kind.SWAPS: 2e-4,
        Kind.PROGRAMS: 1e-3,
    }
    return [seconds[kind] for kind in Kind]


class CostModel:
    """Seconds for one of each kind of work.  `hidden_size` and `vocab_size` say how long answers are."""

    def __init__(self, vocab_size: int = 0, hidden_size: int = 0, seconds: Sequence[float] | None = None) -> None:
        self.seconds = list(first_guess(vocab_size) if seconds is None else seconds)
        self._variance = [FIRST_VARIANCE] * len(Kind)
        self._vocab_size = vocab_size
        self._hidden_size = hidden_size
        self._least_byte = self.seconds[Kind.BYTES]  # its receiver has work with it too, which no step sees

    def predict(self, work: Work) -> float:
        return sum(map(float.__mul__, self.seconds, work))

    def learn(self, work: Work, took_s: float) -> None:
        """A step of that work took `took_s` seconds."""
        predicted = self.predict(work)
        if predicted <= 0.0 or took_s <= 0.0:
            return
        error = math.log(took_s / predicted)
        is_far = abs(error) > MOST_CHANGE
        error = max(-MOST_CHANGE, min(MOST_CHANGE, error))
        seconds, variance = self.seconds, self._variance
        parts = [(kind, seconds[kind] * amount / predicted) for kind, amount in enumerate(work) if amount]
        scale = 1.0 / (NOISE + sum([variance[kind] * part * part for kind, part in parts]))
        for kind, part in parts:
            gain = variance[kind] * part * scale
            seconds[kind] *= math.exp(gain * error)
            if not is_far:
                variance[kind] += DRIFT - gain * part * variance[kind]
        seconds[Kind.BYTES] = max(seconds[Kind.BYTES], self._least_byte)

    @property
    def bare(self) -> float:
        """A step that decodes one token of one sequence, however short."""
        return self.seconds[Kind.STEP] + self.decode(1, 0)

    def decode(self, num_tokens: int, context: int, num_draws: int = 1) -> float:
        """Of one command: so many tokens behind `context` others, and so many draws."""
        s = self.seconds
        return (
            s[Kind.ITEMS]
            + num_tokens * (s[Kind.TOKENS] + s[Kind.ATTENTION] * (context + num_tokens))
            + num_draws * s[Kind.GREEDY]
        )

    def tokens_within(self, seconds: float, context: int, *, is_masked: bool) -> int:
        """How many tokens behind `context` others run within `seconds`."""
        s = self.seconds
        square = s[Kind.ATTENTION] + (s[Kind.MASK_BITS] if is_masked else 0.0)
        each = s[Kind.TOKENS] + square * context
        if seconds == math.inf:
            return 1 << 30
        if square <= 0.0:
            return int(seconds / each) if each > 0.0 else 1 << 30
        return int((math.sqrt(each * each + 4.0 * square * seconds) - each) / (2.0 * square))

    def tokens(self, num_tokens: int, context: int, *, is_masked: bool) -> float:
        """So many tokens behind `context` others."""
        s = self.seconds
        square = s[Kind.ATTENTION] + (s[Kind.MASK_BITS] if is_masked else 0.0)
        return num_tokens * (s[Kind.TOKENS] + square * (context + num_tokens))

    def output(self, output: Output) -> float:
        """Of one output of a pass."""
        work = no_work()
        self.add_output(work, output)
        return self.predict(work)

    def add_output(self, work: Work, output: Output) -> None:
        """Count one output of a pass."""
        if isinstance(output, Sample):
            add_draw(work, output.sampler)
            work[Kind.BYTES] += 4
        elif isinstance(output, Logprobs):
            num_ids = len(output.token_ids) / 4
            work[Kind.LOGPROBS] += 1
            work[Kind.VALUES] += num_ids
            work[Kind.BYTES] += 4 * num_ids
        elif isinstance(output, Distribution):
            num_ids = min(output.k, self._vocab_size) if output.k > 0 else self._vocab_size
            work[Kind.DISTRIBUTIONS] += 1
            work[Kind.VALUES] += num_ids
            work[Kind.BYTES] += 8 * num_ids
        elif isinstance(output, Logits):
            work[Kind.LOGITS] += 1
            work[Kind.BYTES] += 4 * self._vocab_size
        elif isinstance(output, Entropy):
            work[Kind.ENTROPIES] += 1
        elif isinstance(output, Hidden):
            work[Kind.HIDDEN] += 1
            work[Kind.BYTES] += 4 * self._hidden_size


def add_draw(work: Work, sampler: Sampler, num_draws: int = 1, *, is_masked: bool = False) -> None:
    """Count draws with a sampler."""
    work[Kind.DRAWS if sampler.temperature else Kind.GREEDY] += num_draws
    if sampler.bias_tokens or sampler.allowed or is_masked:
        work[Kind.FILTERED] += num_draws
        work[Kind.VALUES] += num_draws * len(sampler.bias_tokens) / 4
