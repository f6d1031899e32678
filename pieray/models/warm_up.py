"""Warming up: what a device does at the first step of each kind, done before the first inferlet comes.

On CUDA the first step of a kind compiles kernels (seconds, but for what Triton's cache on disk has) and captures a
graph (tenths of a second), while everybody waits.  A CPU has nothing to warm up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np

from pieray.errors import DeviceLost, PierayError
from pieray.messages import Sample, Sampler
from pieray.models.batch import ForwardItem
from pieray.models.decode_graphs import MIN_KV_LEN, PAGES_PER_ROW, ROWS, GraphedDecoder
from pieray.models.runner import ModelRunner

log = logging.getLogger(__name__)

BUDGET_S = 60.0
"""No further step is begun after so long: the rest is left to the steps that need it."""
MAX_KV_LEN = 4096
"""Sequences up to this length are warmed up for."""
PROMPT_TOKENS = (16, 500)
GREEDY, DRAWN = Sampler(), Sampler(temperature=1.0, top_k=40, top_p=0.9, seed=1)


def warm_up(runner: ModelRunner, max_rows: int, max_tokens: int, budget_s: float = BUDGET_S) -> int:
    """Run a step of each kind that is to be fast at once: prompts, and decodes of up to `max_rows` sequences.

    To be called before pages are leased: what it writes to them is nobody's.  Returns the number of steps; a step that
    fails, for want of memory perhaps, is logged and will fail again when it is asked for.  Raises DeviceLost.
    """
    if not isinstance(runner.decoder, GraphedDecoder):
        return 0
    began = time.monotonic()
    num_steps = 0
    for items in _steps(runner, max_rows, max_tokens):
        if time.monotonic() - began > budget_s:
            log.warning("warming up took %.0f s, and was cut short", budget_s)
            break
        try:
            wanted = [[Sample(-1, DRAWN if place else GREEDY)] for place in range(len(items))]
            failed = [one for one in runner.step(items, wanted) if isinstance(one, PierayError)]
        except DeviceLost:
            raise
        except PierayError as error:
            failed = [error]
        if failed:
            log.warning("a step of %d items failed while warming up: %s", len(items), failed[0].message)
        num_steps += 1
    log.info("warmed up: %d steps in %.1f s", num_steps, time.monotonic() - began)
    return num_steps


def _steps(runner: ModelRunner, max_rows: int, max_tokens: int) -> Iterator[Sequence[ForwardItem]]:
    """Prompts alone and beside decodes; then decodes, the shortest and largest batches first."""
    longest = min(MAX_KV_LEN, runner.config.max_position, PAGES_PER_ROW * runner.pool.page_size)
    for num_tokens in PROMPT_TOKENS:
        if num_tokens <= min(longest, max_tokens):
            prompt = _item(runner, 0, num_tokens)
            yield [prompt]
            yield [prompt, _item(runner, min(num_tokens, longest - 1), 1)]
    most = next((rows for rows in ROWS if rows >= max_rows), ROWS[-1])
    kv_len = MIN_KV_LEN
    while True:
        for rows in reversed(ROWS[: ROWS.index(most) + 1]):
            yield [_item(runner, min(kv_len, longest) - 1, 1)] * min(rows, max_rows)
        if kv_len >= longest:
            return
        kv_len *= 2


def _item(runner: ModelRunner, kv_len: int, num_tokens: int) -> ForwardItem:
    """Tokens behind `kv_len` others, all in the first page of the pool: what they are does not matter."""
    pages = np.zeros(-(-(kv_len + num_tokens) // runner.pool.page_size), np.uint32)
    positions = np.arange(kv_len, kv_len + num_tokens, dtype=np.uint32)
    return ForwardItem(pages, kv_len, np.zeros(num_tokens, np.uint32), positions)
