"""What steps cost, learned before the first inferlet comes.

While everybody is served, steps are cut by what they are thought to cost, so that those with commands are all about
as long: what a command costs and what its tokens do cannot be told apart by them.  So steps of many sizes are run
ahead, on pages that nobody has yet.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pieray.messages import Forward, Message, OpenInferlet, Output, Sample, Sampler, StartPlan
from pieray.model_settings import ModelSettings
from pieray.models.tokenizer import TokenizerSpec
from pieray.sched.core import BatcherCore
from pieray.sched.costs import CostModel

log = logging.getLogger(__name__)

BUDGET_S = 0.5
"""No further step is begun after so long."""
PEER = "calibration"
GREEDY, DRAWN = Sampler(), Sampler(temperature=1.0, top_p=0.9, seed=1)
ROUNDS = 2
SHORT, LONG = 0, 448
"""Tokens in front of those that are run."""


def calibrate(
    runner: Any,
    settings: ModelSettings,
    spec: TokenizerSpec,
    costs: CostModel,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run steps of commands and of rows, alone and together; `costs` learns from them, in times of `clock`.  Returns
    how many there were.

    To be called before pages are leased, and before anything is served.  Raises DeviceLost.
    """
    core = BatcherCore(runner, settings, clock, spec, costs)
    core.plans.vocab_size = runner.config.vocab_size
    work = _Work(min(runner.pool.num_pages, -(-runner.config.max_position // settings.page_size)), settings.page_size)
    began, num_steps = time.monotonic(), 0
    for messages in work.rounds():
        core.submit(PEER, messages, time.monotonic())
        while core.has_work and time.monotonic() - began < budget_s:
            core.step(time.monotonic())
            core.sent()
            num_steps += 1
        if core.lost is not None:
            raise core.lost
        core.drop_peer(PEER)
    log.info("calibrated: %d steps in %.2f s", num_steps, time.monotonic() - began)
    return num_steps


class _Work:
    """Messages of inferlets 1, 2, ... that all write to the first pages."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self._num_tokens = num_pages * page_size
        self._page_size = page_size
        self._numbers = itertools.count(1)

    def rounds(self) -> Iterator[list[Message]]:
        """What runs together, from small to large."""
        for _ in range(ROUNDS):
            for context, (num_rows, *lengths) in itertools.product((SHORT, LONG), ((1, 1, 4), (4, 16, 64))):
                for sampler, num_tokens in zip((GREEDY, DRAWN), lengths, strict=True):
                    yield [one for _ in range(num_rows) for one in self.plan(context, sampler)]
                    yield self.forward(context, num_tokens)
            for num_tokens in (1, 16):
                yield [*self.plan(SHORT, GREEDY), *self.forward(LONG, num_tokens)]

    def forward(self, context: int, num_tokens: int) -> list[Message]:
        """A pass with a sample behind it; none, if there is no room for it."""
        pages = self._pages(context + num_tokens)
        if not pages:
            return []
        inferlet = next(self._numbers)
        tokens = np.zeros(num_tokens, "<u4").tobytes()
        samples: list[Output] = [Sample(-1, GREEDY, inferlet << 32 | 2)]
        message = Forward(inferlet << 32 | 1, inferlet, 1, 0, pages, context, tokens, b"", b"", samples)
        return [OpenInferlet(inferlet, PEER), message]

    def plan(self, context: int, sampler: Sampler, num_tokens: int = 8) -> list[Message]:
        """One that draws so many tokens; none, if there is no room for it."""
        pages = self._pages(context + 1 + num_tokens)
        if not pages:
            return []
        inferlet = next(self._numbers)
        token = np.zeros(1, "<u4").tobytes()
        message = StartPlan(
            inferlet << 32 | 1,
            inferlet,
            1,
            0,
            pages,
            context,
            token,
            num_tokens,
            sampler,
            b"",
            [],
            [],
            0,
            0,
            b"",
            b"",
            False,
            b"",
        )
        return [OpenInferlet(inferlet, PEER), message]

    def _pages(self, num_tokens: int) -> bytes:
        if num_tokens > self._num_tokens:
            return b""
        return np.arange(-(-num_tokens // self._page_size), dtype="<u4").tobytes()
