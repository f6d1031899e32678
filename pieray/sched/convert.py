"""Between the scheduler and the runner: commands to items, values to answers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pieray.arrays import F32, I32, U32
from pieray.messages import Output, Sample, Sampler
from pieray.models.batch import ForwardItem
from pieray.sched.chunks import Chunk
from pieray.sched.commands import ForwardCommand
from pieray.sched.plans import PlanCommand

_TOKEN = struct.Struct("<I")


def asked(chunk: Chunk, page_size: int) -> tuple[ForwardItem, Sequence[Output]]:
    """What the runner is asked for a chunk."""
    command, start, num_tokens, outputs, _ = chunk
    if isinstance(command, PlanCommand):
        return _plan_item(command, start, num_tokens), _plan_outputs(command, start, num_tokens)
    return _forward_item(command, start, num_tokens, page_size), outputs


def _forward_item(command: ForwardCommand, start: int, num_tokens: int, page_size: int) -> ForwardItem:
    if num_tokens == command.num_tokens:
        return ForwardItem(
            command.pages,
            command.kv_len,
            command.tokens,
            command.positions,
            command.mask_between(0, num_tokens),
            embeds=command.embeds,
            places=command.places,
            adapter=command.adapter,
            counters=command.counters,
            programs=command.programs,
            draws=command.draw_programs,
        )
    kv_len, stop = command.kv_len + start, start + num_tokens
    embeds, places = _embeds_between(command, start, stop)
    return ForwardItem(
        command.pages[: -(-(kv_len + num_tokens) // page_size)],
        kv_len,
        command.tokens[start:stop],
        command.positions[start:stop],
        command.mask_between(start, stop),
        embeds=embeds,
        places=places,
        adapter=command.adapter,
        counters=None if command.counters is None else command.counters[start:stop],
        start=start,
        programs=command.programs,
        draws=command.draw_programs,
    )


def _embeds_between(command: ForwardCommand, start: int, stop: int) -> tuple[tuple[U32, F32] | None, I32 | None]:
    """Those of rows `[start, stop)`, counted from `start`, and their places."""
    if command.embeds is None:
        return None, None
    rows, values = command.embeds
    first, last = np.searchsorted(rows, [start, stop])
    if first == last:
        return None, None
    places = None if command.places is None else command.places[first:last]
    return (rows[first:last] - np.uint32(start), values[first:last]), places


def _plan_item(plan: PlanCommand, start: int, num_tokens: int) -> ForwardItem:
    stop = start + num_tokens
    tokens, positions = plan.chunk(start, stop)
    pages = plan.pages[: -(-(plan.kv_len + stop) // plan.page_size)]
    return ForwardItem(
        pages,
        plan.kv_len + start,
        tokens,
        positions,
        plan.mask_rows(start, stop),
        adapter=plan.adapter,
        programs=plan.programs,
        draws=plan.draw_programs,
    )


def _plan_outputs(plan: PlanCommand, start: int, num_tokens: int) -> list[Sample]:
    """A run's draws, restricted to what its grammar allows too."""
    return [
        Sample(row, plan.sampler if not mask else _restricted(plan.sampler, mask), is_scored=plan.is_scored)
        for row, mask in plan.draws(start, start + num_tokens)
    ]


def _restricted(sampler: Sampler, mask: bytes) -> Sampler:
    both = np.frombuffer(mask, np.uint8) & np.frombuffer(sampler.allowed or mask, np.uint8)
    return replace(sampler, allowed=both.tobytes())


def wire_value(value: int | tuple[Any, Any] | npt.NDArray[Any]) -> Any:
    """The value of a Completed: u32[1], [u32[k], f32[k]] or f32[n], little-endian."""
    if isinstance(value, int):
        return _TOKEN.pack(value)
    if isinstance(value, tuple):
        return [value[0].astype("<u4", copy=False).tobytes(), value[1].astype("<f4", copy=False).tobytes()]
    return value.astype("<f4", copy=False).tobytes()
