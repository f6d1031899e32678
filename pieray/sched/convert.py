"""Between the wire and the runner: commands to forward items, values to answers.  Only this file needs torch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pieray.messages import DISTRIBUTION, ENTROPY, HIDDEN, LOGITS, LOGPROBS, SAMPLE, SAMPLE_WITH, Output
from pieray.models.batch import ForwardItem
from pieray.models.runner import (
    Distribution,
    Entropy,
    Hidden,
    Logits,
    Logprobs,
    OutputRequest,
    Sample,
    ScoredSample,
)
from pieray.models.sampler import SamplingParams
from pieray.sched.commands import F32, U32, ForwardCommand
from pieray.sched.plans import PlanCommand

_TOKEN = struct.Struct("<I")


def forward_item(command: ForwardCommand, start: int, num_tokens: int, page_size: int) -> ForwardItem:
    """Tokens `[start, start + num_tokens)` of the command, on top of those before."""
    if num_tokens == command.num_tokens:
        return ForwardItem(
            command.pages, command.kv_len, command.tokens, command.positions, command.mask_between(0, num_tokens),
            embeds=command.embeds, adapter=command.adapter,
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
    )


def plan_item(plan: PlanCommand, start: int, num_tokens: int) -> ForwardItem:
    """Tokens `[start, start + num_tokens)` of a plan's run and its drafts."""
    stop = start + num_tokens
    tokens, positions = plan.chunk(start, stop)
    pages = plan.pages[: -(-(plan.kv_len + stop) // plan.page_size)]
    return ForwardItem(pages, plan.kv_len + start, tokens, positions, plan.mask_rows(start, stop),
                       adapter=plan.adapter)  # fmt: skip


def plan_requests(plan: PlanCommand, start: int, num_tokens: int) -> list[OutputRequest]:
    """Its draws in that chunk."""
    return [
        plan_draw(plan.sampler, row, counter, mask, is_scored=plan.is_scored)
        for row, counter, mask in plan.draws(start, start + num_tokens)
    ]


def plan_draw(wire: Sequence[Any], row: int, counter: int, mask: bytes, *, is_scored: bool) -> Sample:
    """A draw as `sample_request` has it, restricted to what the grammar allows too."""
    sample = sample_request(wire, row, counter)
    allowed = sample.allowed
    if mask:
        allowed = mask if allowed is None else _both(allowed, mask)
    kind = ScoredSample if is_scored else Sample
    return kind(row, sample.params, counter, allowed, sample.bias)


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


def output_request(command: ForwardCommand, output: Output, start: int) -> OutputRequest:
    """What the runner is asked, of an item that begins at token `start` of the command."""
    return _REQUESTS[output[1]](command, output, output[2] - start)


def _sample(command: ForwardCommand, output: Output, row: int) -> Sample:
    _, _, absolute_row, temperature, top_k, top_p, min_p, seed = output
    return Sample(row, SamplingParams(temperature, top_k, top_p, min_p, seed), command.counter(absolute_row))


def sample_request(wire: Sequence[Any], row: int, counter: int) -> Sample:
    """A draw with a sampler chain as it travels (`SamplerSpec.to_wire`).  Raises ValueError or TypeError if malformed;
    the runner checks the values."""
    temperature, top_k, top_p, min_p, typical_p, seed, bias_tokens, bias_values, allowed = wire
    params = SamplingParams(temperature, top_k, top_p, min_p, seed, typical_p)
    bias = (np.frombuffer(bias_tokens, "<u4"), np.frombuffer(bias_values, "<f4")) if bias_tokens else None
    return Sample(row, params, counter, allowed or None, bias)


_REQUESTS: dict[int, Callable[[ForwardCommand, Output, int], OutputRequest]] = {
    SAMPLE: _sample,
    DISTRIBUTION: lambda _command, output, row: Distribution(row, output[3]),
    LOGPROBS: lambda _command, output, row: Logprobs(row, np.frombuffer(output[3], "<u4")),
    LOGITS: lambda _command, _output, row: Logits(row),
    ENTROPY: lambda _command, _output, row: Entropy(row),
    HIDDEN: lambda _command, _output, row: Hidden(row),
    SAMPLE_WITH: lambda command, output, row: sample_request(output[3], row, command.counter(output[2])),
}


def wire_value(value: int | tuple[Any, Any] | npt.NDArray[Any]) -> Any:
    """The value of a Completed: u32[1], [u32[k], f32[k]] or f32[n], little-endian."""
    if isinstance(value, int):
        return _TOKEN.pack(value)
    if isinstance(value, tuple):
        return [value[0].astype("<u4", copy=False).tobytes(), value[1].astype("<f4", copy=False).tobytes()]
    return value.astype("<f4", copy=False).tobytes()
