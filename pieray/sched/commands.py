"""Commands as the batcher holds them: checked messages, with what the scheduler notes about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from pieray.arrays import F32, I32, U32
from pieray.errors import InvalidRequest, PierayError
from pieray.messages import CopyTokens, Forward, Logprobs, Message, Output, ReadPages, SwapIn, SwapOut, WritePages
from pieray.models.batch import PLACE_SIZE
from pieray.sched.costs import Kind
from pieray.sched.failures import failed
from pieray.sched.lanes import LaneKey

if TYPE_CHECKING:
    from pieray.models.tensor_programs import ProgramInstance

Move: TypeAlias = CopyTokens | SwapOut | SwapIn | ReadPages | WritePages
Slots: TypeAlias = dict[int, int]  # page: bits of its slots

PART_BYTES = 64 << 10
"""Of a list of tokens, multiples of 4: a longer one is answered in parts, which may be computed in different steps."""


class Command:
    """One command.  `num_tokens` is 0 for what moves KV only; `num_done` are computed or in the running step."""

    __slots__ = (
        "arrived",
        "dependents",
        "inferlet",
        "is_over",
        "lane",
        "num_blockers",
        "num_done",
        "num_tokens",
        "peer_id",
        "priority",
        "queue",
        "seq",
        "ticket",
        "turn",
    )
    is_copy: ClassVar[bool]

    def __init__(self, peer_id: str, message: Forward | Move, num_tokens: int) -> None:
        self.peer_id = peer_id
        self.inferlet = message.inferlet
        self.lane: LaneKey = (peer_id, message.inferlet)
        self.queue = message.queue
        self.priority = message.priority
        self.ticket = message.ticket
        self.num_tokens = num_tokens
        self.num_done = 0
        self.num_blockers = 0  # unfinished commands that conflict with this one and came before it
        self.dependents: list[Command] = []  # those that this one blocks
        self.is_over = False  # failed or dropped: a result that still comes is discarded
        self.seq = -1  # order of arrival
        self.turn = -1  # the same, but for a plan, which takes its turn anew after each step
        self.arrived = 0.0  # seconds, monotonic

    @property
    def is_ready(self) -> bool:
        """Whether the batcher has all that it needs to run."""
        return True

    @property
    def num_due(self) -> int:
        """Tokens that make it a decode or a prefill."""
        return self.num_tokens

    def used_pages(self) -> list[int]:
        """Pages read or written."""
        raise NotImplementedError

    def written_pages(self) -> list[int]:
        raise NotImplementedError

    def read_slots(self, page_size: int) -> Slots:
        """What must have been written before."""
        raise NotImplementedError

    def written_slots(self, page_size: int) -> Slots:
        raise NotImplementedError

    def tickets(self) -> list[int]:
        """All tickets that are still to be answered."""
        return [self.ticket]

    def failures(self, error: PierayError) -> list[Message]:
        """What tells that it has failed."""
        return [failed(ticket, error) for ticket in self.tickets()]


class ForwardCommand(Command):
    """A forward pass.  Raises InvalidRequest for a message that does not fit together.

    Values that depend on the model (tokens, positions, page numbers) are checked by the runner, in the step.
    """

    __slots__ = (
        "_output_s",
        "_parts",
        "adapter",
        "all_outputs",
        "counters",
        "draw_programs",
        "draw_work",
        "embeds",
        "first_written",
        "kv_len",
        "mask",
        "num_answered",
        "num_asked",
        "outputs",
        "pages",
        "places",
        "positions",
        "program_work",
        "programs",
        "tokens",
    )
    is_copy = False

    def __init__(self, peer_id: str, message: Forward, page_size: int) -> None:
        num_tokens = len(message.tokens) // 4
        super().__init__(peer_id, message, num_tokens)
        self.kv_len = message.kv_len
        self.first_written = message.kv_len // page_size
        end = message.kv_len + num_tokens
        num_pages = -(-end // page_size)
        if num_tokens < 1 or message.kv_len < 0 or num_pages * 4 > len(message.pages):
            raise InvalidRequest(
                f"kv_len {message.kv_len} + {num_tokens} tokens: kv_len is at least 0, tokens at least 1, and both fit "
                f"in {len(message.pages) // 4} pages of {page_size}"
            )
        self.pages: U32 = np.frombuffer(message.pages, "<u4", num_pages)
        self.tokens: U32 = np.frombuffer(message.tokens, "<u4")
        if message.positions:
            self.positions: U32 = np.frombuffer(message.positions, "<u4")
            if len(self.positions) != num_tokens:
                raise InvalidRequest(f"positions: none or one per token ({num_tokens}); given {len(self.positions)}")
        else:
            self.positions = np.arange(message.kv_len, end, dtype=np.uint32)
        self.counters: U32 | None = None  # of the draws behind its tokens, if not `kv_len` and up
        self.mask = _checked_mask(message.mask, num_tokens, end)
        self.embeds = _checked_embeds(message.embeds, num_tokens)
        self.programs: Sequence[ProgramInstance] = ()  # that run in the pass
        self.draw_programs: Mapping[int, ProgramInstance] = {}  # that samplers name
        self.draw_work = 0  # operations of these for a draw, at most
        self.program_work = 0  # operations of `programs` for a token
        self.places = _checked_places(message.embeds)
        self.adapter: Any = None  # a `LoraAdapter`: held, so that it stays loaded until the command has run
        for output in message.outputs:
            if not 0 <= output.row < num_tokens:
                raise InvalidRequest(f"row {output.row} of a pass of {num_tokens} tokens is outside of it")
        self._parts: dict[int, tuple[int, list[Any]]] = {}  # by ticket: of how many parts, and those that are here
        self.all_outputs = self._cut_up(message.outputs)  # in the order asked
        self.outputs = _by_row(self.all_outputs)
        self.num_asked = 0  # of `outputs`: those that are computed or in the running step
        self.num_answered = 0  # of `outputs`
        self._output_s = -1.0  # what all outputs take, in seconds, if that has been asked

    def _cut_up(self, outputs: list[Output]) -> list[Output]:
        """Outputs with long lists become several with parts of the list: no step need compute more than one."""
        if not any(isinstance(output, Logprobs) and len(output.token_ids) > PART_BYTES for output in outputs):
            return outputs
        parts: list[Output] = []
        for output in outputs:
            if not isinstance(output, Logprobs) or len(ids := output.token_ids) <= PART_BYTES:
                parts.append(output)
                continue
            starts = range(0, len(ids), PART_BYTES)
            parts += [Logprobs(output.row, ids[at : at + PART_BYTES], output.ticket) for at in starts]
            self._parts[output.ticket] = len(starts), []
        return parts

    def joined(self, ticket: int, value: Any) -> Any:
        """The whole value of an output, from its next part or all of it; None: there are parts to come."""
        if ticket not in self._parts:
            return value
        count, parts = self._parts[ticket]
        parts.append(value)
        if len(parts) < count:
            return None
        del self._parts[ticket]
        return next((part for part in parts if isinstance(part, PierayError)), None) or np.concatenate(parts)

    @property
    def is_masked(self) -> bool:
        """Whether there are bits for its rows to be looked at."""
        return self.mask is not None

    def seconds_of_outputs(self, cost: Callable[[Output], float]) -> float:
        """What all outputs take, as `cost` says when first asked."""
        if self._output_s < 0.0:
            self._output_s = sum(map(cost, self.outputs))
        return self._output_s

    def mask_between(self, start: int, stop: int) -> bytes | None:
        """Rows `[start, stop)` of the mask, cut to the `kv_len + stop` slots that are there by then."""
        if self.mask is None or stop - start == self.num_tokens:
            return self.mask
        width = self.kv_len + self.num_tokens
        first, last = start * width, stop * width
        packed = np.frombuffer(self.mask, np.uint8)[first // 8 : -(-last // 8)]
        bits = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + last - first]
        return np.packbits(bits.reshape(-1, width)[:, : self.kv_len + stop], bitorder="little").tobytes()

    def used_pages(self) -> list[int]:
        return _numbers(self.pages)

    def written_pages(self) -> list[int]:
        return _numbers(self.pages[self.first_written :])

    def read_slots(self, page_size: int) -> Slots:
        return page_slots(_numbers(self.pages), 0, self.kv_len, page_size)

    def written_slots(self, page_size: int) -> Slots:
        return page_slots(_numbers(self.pages), self.kv_len, self.kv_len + self.num_tokens, page_size)

    def tickets(self) -> list[int]:
        return [self.ticket, *dict.fromkeys(output.ticket for output in self.outputs[self.num_answered :])]


class MoveCommand(Command):
    """Moves KV about and computes nothing: it runs at the start of a step, cut over several if it is long."""

    __slots__ = ("num_parts", "step_range")
    is_copy = True
    cost: ClassVar[Kind]  # of one part

    def __init__(self, peer_id: str, message: Move, num_parts: int) -> None:
        super().__init__(peer_id, message, 0)
        self.num_parts = num_parts
        self.step_range = (0, 0)  # the parts of the step that was scheduled last

    def schedule(self, most: int) -> int:
        """The next parts are in the step, `most` of them or what is left; their number."""
        first = self.step_range[1]
        last = min(first + most, self.num_parts)
        self.step_range = first, last
        return last - first

    @property
    def is_scheduled(self) -> bool:
        """Whether no part is left for a later step."""
        return self.step_range[1] == self.num_parts


class CopyCommand(MoveCommand):
    """A copy of token ranges.  All ranges are read before any is written: so one is cut over steps only if none of its
    ranges reads a page that another writes."""

    __slots__ = ("_is_whole", "copies")
    cost = Kind.COPIES

    def __init__(self, peer_id: str, message: CopyTokens, page_size: int) -> None:
        super().__init__(peer_id, message, len(message.copies))
        self.copies = [tuple(copy) for copy in message.copies]
        for copy in self.copies:
            if len(copy) != 5 or min(copy) < 0 or max(copy[1], copy[3]) + copy[4] > page_size:
                raise InvalidRequest(f"a copy is [page, offset, page, offset, count] in pages of {page_size}: {copy}")
        self._is_whole = not {copy[0] for copy in self.copies}.isdisjoint(copy[2] for copy in self.copies)

    def schedule(self, most: int) -> int:
        """As of any, but all if it must not be cut."""
        return super().schedule(self.num_parts if self._is_whole else most)

    def step_copies(self) -> list[tuple[int, ...]]:
        """The ranges of the step."""
        return self.copies[slice(*self.step_range)]

    def used_pages(self) -> list[int]:
        return [page for copy in self.copies for page in (copy[0], copy[2])]

    def written_pages(self) -> list[int]:
        return [copy[2] for copy in self.copies]

    def read_slots(self, page_size: int) -> Slots:  # noqa: ARG002 - a range never leaves its page
        return _merged((src, offset, count) for src, offset, _, _, count in self.copies)

    def written_slots(self, page_size: int) -> Slots:  # noqa: ARG002
        return _merged((dst, offset, count) for _, _, dst, offset, count in self.copies)


def _numbers(pages: U32) -> list[int]:
    numbers: list[int] = pages.tolist()
    return numbers


def page_slots(pages: list[int], start: int, end: int, page_size: int) -> Slots:
    """Slots `[start, end)` of the pages in order."""
    first, last = start // page_size, -(-end // page_size)
    return _merged(
        (pages[i], offset := max(start - i * page_size, 0), min(end - i * page_size, page_size) - offset)
        for i in range(first, last)
    )


def _merged(ranges: Any) -> Slots:
    found: Slots = {}
    for page, offset, count in ranges:
        found[page] = found.get(page, 0) | ((1 << count) - 1) << offset
    return found


def _checked_mask(mask: bytes, num_tokens: int, end: int) -> bytes | None:
    if not mask:
        return None
    num_bytes = (num_tokens * end + 7) // 8
    if not num_bytes <= len(mask) < num_bytes + 4:  # guests pack words
        raise InvalidRequest(f"a mask of {num_tokens} x {end} bits takes {num_bytes} bytes; given {len(mask)}")
    return mask[:num_bytes]


def _checked_embeds(embeds: list[bytes], num_tokens: int) -> tuple[U32, F32] | None:
    """Rows, ascending, and their values [rows, hidden]."""
    if not embeds:
        return None
    rows = np.frombuffer(embeds[0], "<u4")
    values = np.frombuffer(embeds[1], "<f4")
    if not len(rows) or len(values) % len(rows) or int(rows[-1]) >= num_tokens or not (rows[1:] > rows[:-1]).all():
        raise InvalidRequest(
            f"embeddings are ascending rows below {num_tokens} and as many floats for each; given "
            f"{len(rows)} rows, {len(values)} floats"
        )
    return rows, values.reshape(len(rows), -1)


def _checked_places(embeds: list[bytes]) -> I32 | None:
    """Where embeddings of images stand [rows, PLACE_SIZE], if any of them are of images."""
    if len(embeds) < 3:
        return None
    places = np.frombuffer(embeds[2], "<i4")
    if len(places) * 4 != PLACE_SIZE * len(embeds[0]):
        raise InvalidRequest(
            f"places are {PLACE_SIZE} numbers for each row; given {len(places)} for {len(embeds[0]) // 4}"
        )
    return places.reshape(-1, PLACE_SIZE)


def _by_row(outputs: list[Output]) -> list[Output]:
    """In order of their rows, and as asked for one row."""
    rows = [output.row for output in outputs]
    if all(map(int.__le__, rows, rows[1:])):
        return outputs
    return [outputs[place] for place in np.argsort(rows, kind="stable").tolist()]
