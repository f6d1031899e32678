"""Between the wire and the runner: commands to forward items, values to answers.  Only this file needs torch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pieray.messages import DISTRIBUTION, ENTROPY, HIDDEN, LOGITS, LOGPROBS, SAMPLE, SAMPLE_WITH, Output
from pieray.models.batch import ForwardItem
from pieray.models.runner import Distribution, Entropy, Hidden, Logits, Logprobs, OutputRequest, Sample
from pieray.models.sampler import SamplingParams
from pieray.sched.commands import F32, U32, ForwardCommand

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


def _embeds_between(rows: U32, values: F32, start: int, stop: int) -> tuple[U32, F32] | None:
    """Those of rows `[start, stop)`, counted from `start`."""
    first, last = np.searchsorted(rows, [start, stop])
    return (rows[first:last] - np.uint32(start), values[first:last]) if first < last else None


def outputs_between(command: ForwardCommand, start: int, stop: int) -> list[Output]:
    """Outputs asked for rows `[start, stop)`, in the order asked."""
    if stop - start == command.num_tokens:
        return command.outputs
    return [output for output in command.outputs if start <= output[2] < stop]


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
    LOGPROBS: lambda _command, output, row: Logprobs(row, tuple(np.frombuffer(output[3], "<u4").tolist())),
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
