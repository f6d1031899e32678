"""Between the wire and the runner: commands to forward items, values to answers.  Only this file needs torch."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pieray.messages import Sample, Sampler
from pieray.models.batch import ForwardItem
from pieray.sched.commands import F32, U32, ForwardCommand
from pieray.sched.plans import PlanCommand

_TOKEN = struct.Struct("<I")


def forward_item(command: ForwardCommand, start: int, num_tokens: int, page_size: int) -> ForwardItem:
    """Tokens `[start, start + num_tokens)` of the command, on top of those before."""
    if num_tokens == command.num_tokens:
        return ForwardItem(
            command.pages, command.kv_len, command.tokens, command.positions, command.mask_between(0, num_tokens),
            embeds=command.embeds, adapter=command.adapter, counters=command.counters,
        )  # fmt: skip
    kv_len, stop = command.kv_len + start, start + num_tokens
    return ForwardItem(
        command.pages[: -(-(kv_len + num_tokens) // page_size)],
        kv_len,
        command.tokens[start:stop],
        command.positions[start:stop],
        command.mask_between(start, stop),
        embeds=None if command.embeds is None else _embeds_between(*command.embeds, start, stop),
        adapter=command.adapter,
        counters=None if command.counters is None else command.counters[start:stop],
        start=start,
    )


def plan_item(plan: PlanCommand, start: int, num_tokens: int) -> ForwardItem:
    """Tokens `[start, start + num_tokens)` of a plan's run and its drafts."""
    stop = start + num_tokens
    tokens, positions = plan.chunk(start, stop)
    pages = plan.pages[: -(-(plan.kv_len + stop) // plan.page_size)]
    return ForwardItem(pages, plan.kv_len + start, tokens, positions, plan.mask_rows(start, stop),
                       adapter=plan.adapter)  # fmt: skip


def plan_outputs(plan: PlanCommand, start: int, num_tokens: int) -> list[Sample]:
    """Its draws in that chunk, restricted to what the grammar allows too."""
    return [
        Sample(row, plan.sampler if not mask else _restricted(plan.sampler, mask), is_scored=plan.is_scored)
        for row, mask in plan.draws(start, start + num_tokens)
    ]


def _restricted(sampler: Sampler, mask: bytes) -> Sampler:
    return replace(sampler, allowed=_both(sampler.allowed, mask) if sampler.allowed else mask)


def _both(mask: bytes, other: bytes) -> bytes:
    """What both masks allow."""
    return (np.frombuffer(mask, np.uint8) & np.frombuffer(other, np.uint8)).tobytes()


def drawn(values: Sequence[Any], num_kept: int) -> tuple[bytes, bytes]:
    """The first tokens drawn and, if scored, their log-probabilities, as PlanTokens has them."""
    kept = values[:num_kept]
    if kept and isinstance(kept[0], tuple):
        return b"".join(ids.tobytes() for ids, _ in kept), b"".join(scores.tobytes() for _, scores in kept)
    return np.array(kept, "<u4").tobytes(), b""


def _embeds_between(rows: U32, values: F32, start: int, stop: int) -> tuple[U32, F32] | None:
    """Those of rows `[start, stop)`, counted from `start`."""
    first, last = np.searchsorted(rows, [start, stop])
    return (rows[first:last] - np.uint32(start), values[first:last]) if first < last else None


def wire_value(value: int | tuple[Any, Any] | npt.NDArray[Any]) -> Any:
    """The value of a Completed: u32[1], [u32[k], f32[k]] or f32[n], little-endian."""
    if isinstance(value, int):
        return _TOKEN.pack(value)
    if isinstance(value, tuple):
        return [value[0].astype("<u4", copy=False).tobytes(), value[1].astype("<f4", copy=False).tobytes()]
    return value.astype("<f4", copy=False).tobytes()
