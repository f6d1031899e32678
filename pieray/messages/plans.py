"""InferletActor <-> Batcher: decode plans.

A plan travels as *runs*: from `start` or `resume` until it ends or is paused.  Each run is a command of its own with
all that it needs, so that a batcher keeps nothing of a plan that is paused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pieray.messages.frame import Message, register
from pieray.messages.outputs import Sampler


@register(15)
@dataclass(frozen=True, slots=True)
class StartPlan(Message):
    """Run tokens on top of `kv_len` tokens of KV, then draw up to `max_tokens` tokens, each run in its turn.

    Answered with PlanTokens as they come, at last with RunEnded.
    """

    ticket: int
    inferlet: int
    queue: int
    priority: int
    pages: bytes  # u32: physical pages, in order; room for kv_len + tokens at least, for the rest see ExtendPlan
    kv_len: int
    tokens: bytes  # u32
    max_tokens: int
    sampler: Sampler
    stop_tokens: bytes  # u32
    stop_texts: list[str]
    grammar: list[Any]  # [kind, text, tokens taken in u32 bytes, tenant], or []
    adapter: int
    num_drafts: int  # most tokens to draft a step
    history: bytes  # u32: what the drafter looks at besides `tokens` and what is drawn
    drawn: bytes  # u32: tokens that earlier runs have drawn, if there are stop texts: one may begin in them
    is_scored: bool  # whether log-probabilities are wanted
    visible: bytes  # packed bits [kv_len], 1 = may be attended to; b"": all
    programs: list[int] = field(default_factory=list)  # as those of Forward


@register(16)
@dataclass(frozen=True, slots=True)
class ExtendPlan(Message):
    """More pages behind those of a run; nothing if it has ended."""

    ticket: int  # of the StartPlan, as in the others
    pages: bytes  # u32


@register(17)
@dataclass(frozen=True, slots=True)
class StopPlan(Message):
    """End a run after the step in progress; nothing if it has ended."""

    ticket: int


@register(34)
@dataclass(frozen=True, slots=True)
class PlanTokens(Message):
    """What one step has drawn for runs of the peer's: columns, a row for each run; the KV of all its tokens but the
    last one is written.  Sent ahead of the RunEnded of a run that ends."""

    tickets: bytes  # u64 [R]: of the StartPlans
    num_tokens: bytes  # u8 [R], each at least 1
    tokens: bytes  # u32, of all runs in a line
    logprobs: bytes  # f32, one per token, or b"": those of runs that are not scored travel in a message of their own
    counts: bytes  # u32 [R, 3], of each run so far: steps, tokens drafted, drafted tokens accepted

    @classmethod
    def of(
        cls, tickets: Sequence[int], tokens: Sequence[Sequence[int]], logprobs: bytes, counts: Sequence[Sequence[int]]
    ) -> PlanTokens:
        """From rows."""
        return cls(
            np.array(tickets, "<u8").tobytes(),
            bytes(map(len, tokens)),
            np.array([token for row in tokens for token in row], "<u4").tobytes(),
            logprobs,
            np.array(counts, "<u4").tobytes(),
        )

    def rows(self) -> Iterator[RunTokens]:
        """Row by row."""
        start = 0
        for row, ticket in enumerate(np.frombuffer(self.tickets, "<u8").tolist()):
            stop = start + 4 * self.num_tokens[row]
            counts = self.counts[12 * row : 12 * row + 12]
            yield RunTokens(ticket, self.tokens[start:stop], self.logprobs[start:stop], counts)
            start = stop


@register(36)
@dataclass(frozen=True, slots=True)
class RunEnded(Message):
    """A run has ended, or has failed; sent behind all its PlanTokens, in the same lane."""

    ticket: int
    reason: str  # "stop", "length", "grammar"; "" for a run that was stopped or has failed
    stopped_by: int | str  # the token or text that ended it, or ""
    error: list[str]  # [code of pieray.errors, text] of one that has failed, else []


class RunTokens(NamedTuple):
    """A row of PlanTokens."""

    ticket: int
    tokens: bytes  # u32
    logprobs: bytes  # f32, or b""
    counts: bytes  # u32[3]
