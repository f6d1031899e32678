"""Passes of one token with one sample: those of all inferlets of a flush travel as one message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pieray.messages import DecodePasses, Forward, Message, Sample, Sampler


def is_decode(message: Message) -> bool:
    """Whether a row of DecodePasses says the same."""
    return (
        isinstance(message, Forward)
        and len(message.tokens) == 4
        and not (message.mask or message.embeds or message.programs)
        and len(message.outputs) == 1
        and isinstance(message.outputs[0], Sample)
        and not message.outputs[0].sampler.has_programs
    )


class HeldDecodes:
    """Passes held back until the flush, for each inferlet those that it posted last: nothing may overtake them."""

    def __init__(self) -> None:
        self._held: dict[int, list[Forward]] = {}

    def split(self, inferlet: int, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages that must be posted now; passes behind them are held."""
        num_last = 0
        while num_last < len(messages) and is_decode(messages[-1 - num_last]):
            num_last += 1
        before, last = messages[: len(messages) - num_last], messages[len(messages) - num_last :]
        if before and (held := self._held.pop(inferlet, None)):
            before = [*held, *before]
        if last:
            self._held.setdefault(inferlet, []).extend(last)  # type: ignore[arg-type]  # they are Forwards
        return before

    def drop(self, inferlet: int) -> None:
        """Forget an inferlet's."""
        self._held.pop(inferlet, None)

    def take(self) -> Iterator[tuple[int, list[Forward]]]:
        """All that are held, by inferlet."""
        held, self._held = self._held, {}
        return iter(held.items())


def columns(passes: Sequence[Forward]) -> DecodePasses:
    """One message of passes that are decodes."""
    samplers: dict[Sampler, int] = {}
    samples = [output for message in passes for output in message.outputs if isinstance(output, Sample)]
    sampler_of = [samplers.setdefault(sample.sampler, len(samplers)) for sample in samples]
    positions = [message.positions or message.kv_len.to_bytes(4, "little") for message in passes]
    return DecodePasses(
        _packed("<u8", [message.ticket for message in passes]),
        _packed("<u8", [sample.ticket for sample in samples]),
        _packed("<u4", [message.queue for message in passes]),
        _packed("<i4", [message.priority for message in passes]),
        _packed("<u4", [message.kv_len for message in passes]),
        b"".join([message.tokens for message in passes]),
        b"".join(positions),
        _packed("<u4", [message.adapter for message in passes]),
        _packed("<u4", [len(message.pages) // 4 for message in passes]),
        b"".join([message.pages for message in passes]),
        list(samplers),
        _packed("<u4", sampler_of),
    )


def _packed(kind: str, numbers: list[int]) -> bytes:
    return np.array(numbers, kind).tobytes()
